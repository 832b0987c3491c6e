// Waiting for what must come true, with a limit: never a fixed sleep.
import Foundation

/// Factor on every time limit of the tests: `COTERIE_TEST_PATIENCE`, for machines that are slow or crowded. From 1 to 20.
public let patience: Double = {
    let given = ProcessInfo.processInfo.environment["COTERIE_TEST_PATIENCE"].flatMap { Double($0) } ?? 1
    return min(max(given, 1), 20)
}()

/// How often the tests of crashes and cuts repeat what they do, times `COTERIE_TEST_ROUNDS` (1 to 1000).
public func rounds(_ count: Int) -> Int {
    let given = ProcessInfo.processInfo.environment["COTERIE_TEST_ROUNDS"].flatMap { Int($0) } ?? 1
    return count * min(max(given, 1), 1_000)
}

/// Asks again and again until the body returns a value. What it throws meanwhile counts as "not yet" and is told at the end.
@discardableResult
public func eventually<Value>(
    _ what: String, within seconds: Double = 20, every interval: Double = 0.05, _ body: () async throws -> Value?
) async throws -> Value {
    let start = ContinuousClock.now
    var last = ""
    while true {
        do {
            if let value = try await body() { return value }
            last = ""
        } catch { last = ": \(error)" }
        guard ContinuousClock.now - start < .seconds(seconds * patience) else {
            throw TestFailure("not within \(seconds * patience) s: \(what)\(last)")
        }
        try await Task.sleep(for: .seconds(interval))
    }
}

/// As ``eventually(_:within:every:_:)``, for conditions.
public func eventually(
    _ what: String, within seconds: Double = 20, every interval: Double = 0.05, _ body: () async throws -> Bool
) async throws {
    let _: Bool = try await eventually(what, within: seconds, every: interval) { try await body() ? true : nil }
}

/// How long the body takes, in seconds.
public func seconds(_ body: () async throws -> Void) async rethrows -> Double {
    let start = ContinuousClock.now
    try await body()
    let spent = ContinuousClock.now - start
    return Double(spent.components.seconds) + Double(spent.components.attoseconds) / 1e18
}
