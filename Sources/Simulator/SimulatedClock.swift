// What one machine's clock shows while the world's time passes: quicker or slower than others, with jumps ahead, and standing still
// while the machine is suspended. It never goes back.
import Model

struct SimulatedClock {
    /// How much quicker than the world's time it is, in millionths; negative: slower.
    let drift: Int64
    /// From `world` on it shows `local` and what has passed since; before that, `local`.
    private var world = MonotonicTime.zero
    private var local: MonotonicTime

    init(offset: TimeSpan, drift: Int64 = 0) {
        self.drift = drift
        local = .zero + offset
    }

    func reading(at time: MonotonicTime) -> MonotonicTime {
        guard time > world else { return local }
        let passed = (time - world).nanoseconds
        let million: Int64 = 1_000_000
        return local + TimeSpan(nanoseconds: passed + passed / million * drift + passed % million * drift / million)
    }

    /// When it will show `reading`, if nothing happens to it: not earlier, and at most some nanoseconds later.
    func moment(of reading: MonotonicTime) -> MonotonicTime {
        guard reading != .distantFuture, reading > local else { return reading == .distantFuture ? reading : world }
        let shown = (reading - local).nanoseconds
        guard drift != 0 else { return world + TimeSpan(nanoseconds: shown) }
        let million: Int64 = 1_000_000
        let pace = million + drift
        let (rest, isFar) = shown.quotientAndRemainder(dividingBy: pace).quotient.multipliedReportingOverflow(
            by: million)
        if isFar { return .distantFuture }
        return world + TimeSpan(nanoseconds: rest + (shown % pace * million + pace - 1) / pace + 2)
    }

    mutating func jump(by span: TimeSpan, at time: MonotonicTime) {
        local = reading(at: time) + span
        world = max(world, time)
    }

    /// Shows the same until `end`.
    mutating func stop(at time: MonotonicTime, until end: MonotonicTime) {
        local = reading(at: time)
        world = max(world, end)
    }

    /// Goes on, if it stands still.
    mutating func resume(at time: MonotonicTime) { world = min(world, time) }
}
