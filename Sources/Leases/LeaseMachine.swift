// Leases with fencing tokens, as a deterministic state machine (Gray and Cheriton, "Leases", 1989; the token is Chubby's
// sequencer, Burrows 2006). A lease is a key that at most one holder has, for a time that renewals put off:
//
//            acquire: token = index of the grant            renew, acquire by the holder
//     free ───────────────────────────────────────▶ held ──┐
//      ▲                                             │  ▲──┘
//      └───────────── release · TTL over ────────────┘
//
// What this promises is that at most one token of a key is valid at a time, and that a later grant has a larger token; a
// resource that refuses tokens lower than it has seen is therefore safe from a holder that was suspended. It does not promise
// that the former holder has stopped: that is the holder's own deadline's business (`ElectionView`, sending time + 7/8 TTL).
import Model
import Wire

/// All leases of a cluster. Time is log time in milliseconds, which passes only while there is a leader: leases never end
/// while nobody could have renewed them.
public struct LeaseMachine: Sendable {
    public static let version: UInt8 = 1
    /// The prefix of the keys that are elections: `election/NAME`.
    public static let electionPrefix = "election/"

    struct Entry: Sendable {
        /// Nil while free; the entry then only remembers the token.
        var holder: LeaseHolder?
        var token: UInt64
        var ttl: UInt64
        /// Log time at which the lease ends, if held.
        var deadline: UInt64
    }

    var entries: [String: Entry] = [:]
    public private(set) var heldCount = 0
    private(set) var lastToken: UInt64 = 0
    private var deadlines = DeadlineHeap()
    private var freed: Set<String> = []
    private var changed: Set<String> = []

    public init() {}

    // MARK: - Commands

    /// Executes one command. `index` is its place in the log and `now` the log time; both never go back.
    public mutating func apply(_ command: LeaseCommand, index: UInt64, now: UInt64) -> LeaseResult {
        expire(now: now)
        defer { settle() }
        switch command {
        case .acquire(let key, let holder, let info, let ttl):
            return acquire(key, LeaseHolder(id: holder, info: info), ttl, index: index, now: now)
        case .renew(let key, let token):
            guard var entry = entries[key], entry.holder != nil, entry.token == token else { return lost(key) }
            entry.deadline = max(entry.deadline, now.saturatingAdd(entry.ttl))
            entries[key] = entry
            return .renewed(expiresInMilliseconds: entry.deadline - now)
        case .release(let key, let token):
            guard let entry = entries[key], entry.holder != nil, entry.token == token else { return lost(key) }
            free(key)
            return .released
        case .check(let key, let token):
            guard let entry = entries[key], entry.holder != nil, entry.token == token else { return lost(key) }
            return .valid(expiresInMilliseconds: entry.deadline - now)
        }
    }

    private func lost(_ key: String) -> LeaseResult { .lost(newest: entries[key]?.token ?? 0) }

    private mutating func acquire(_ key: String, _ holder: LeaseHolder, _ ttl: UInt64, index: UInt64, now: UInt64)
        -> LeaseResult
    {
        if let why = LeaseMachine.violation(key, holder, ttl) { return .refused(.badInput, why) }
        if var entry = entries[key], let present = entry.holder {
            guard present.id == holder.id else { return .held(view(key, entry, now)) }
            // A renewal never brings the end nearer: the holder may already rely on the later one.
            entry.holder = holder
            entry.ttl = ttl
            entry.deadline = max(entry.deadline, now.saturatingAdd(ttl))
            entries[key] = entry
            if present != holder { changed.insert(key) }
            return .granted(token: entry.token, expiresInMilliseconds: entry.deadline - now)
        }
        if entries[key] == nil, entries.count >= LeaseLimits.keys {
            forgetFree()
            guard entries.count < LeaseLimits.keys else {
                return .refused(.busy, "\(LeaseLimits.keys) leases are held, which is the most there may be")
            }
        }
        // The index itself, unless grants of the same log entry went before.
        lastToken = max(index, lastToken.saturatingAdd(1))
        let entry = Entry(holder: holder, token: lastToken, ttl: ttl, deadline: now.saturatingAdd(ttl))
        entries[key] = entry
        heldCount += 1
        deadlines.push(.init(deadline: entry.deadline, key: key, token: entry.token))
        freed.remove(key)
        changed.insert(key)
        return .granted(token: entry.token, expiresInMilliseconds: ttl)
    }

    private static func violation(_ key: String, _ holder: LeaseHolder, _ ttl: UInt64) -> String? {
        if key.isEmpty || key.utf8.count > LeaseLimits.keyBytes {
            return "a key has 1 to \(LeaseLimits.keyBytes) bytes"
        }
        if holder.id.isEmpty || holder.id.utf8.count > LeaseLimits.holderBytes {
            return "a holder's id has 1 to \(LeaseLimits.holderBytes) bytes"
        }
        if holder.info.count > LeaseLimits.infoPairs
            || holder.info.contains(where: { max($0.key.utf8.count, $0.value.utf8.count) > LeaseLimits.infoBytes })
        {
            return
                "a holder has at most \(LeaseLimits.infoPairs) pairs of information of \(LeaseLimits.infoBytes) bytes"
        }
        if ttl < LeaseLimits.minimumTTLMilliseconds || ttl > LeaseLimits.maximumTTLMilliseconds {
            return "the time to live is from 100ms to 1h"
        }
        return nil
    }

    /// Gives the quarter of free keys whose tokens are oldest up. Harmless: tokens rise over all keys, so that a successor's
    /// is larger even where its predecessor's was forgotten.
    private mutating func forgetFree() {
        let free = entries.filter { $0.value.holder == nil }.sorted { $0.value.token < $1.value.token }
        for (key, _) in free.prefix(free.count / 4 + 1) { entries[key] = nil }
    }

    private mutating func free(_ key: String) {
        entries[key]?.holder = nil
        entries[key]?.deadline = 0
        heldCount -= 1
        freed.insert(key)
        changed.insert(key)
    }

    /// Ends all leases, as if every holder had released its own.
    public mutating func releaseAll() {
        for key in entries.keys.sorted() where entries[key]?.holder != nil { free(key) }
        settle()
    }

    /// Ends the leases whose time is over at `now`.
    public mutating func expire(now: UInt64) {
        settle()
        while let first = deadlines.first, first.deadline <= now {
            free(first.key)
            settle()
        }
    }

    /// Keeps the rule that the first of `deadlines` is exact. Renewals do not touch the heap; what they made stale is put
    /// right when it comes to the top.
    private mutating func settle() {
        while let first = deadlines.first {
            let entry = entries[first.key]
            let isHeld = entry?.token == first.token && entry?.holder != nil
            if isHeld, let entry {
                if entry.deadline == first.deadline { break }
                deadlines.replaceFirst(.init(deadline: entry.deadline, key: first.key, token: first.token))
            } else {
                deadlines.removeFirst()
            }
        }
        // Leases released long before their end leave items behind.
        if deadlines.count > 2 * heldCount + 64 { rebuildDeadlines() }
    }

    private mutating func rebuildDeadlines() {
        deadlines = DeadlineHeap()
        for (key, entry) in entries.sorted(by: { $0.value.token < $1.value.token }) where entry.holder != nil {
            deadlines.push(.init(deadline: entry.deadline, key: key, token: entry.token))
        }
    }

    // MARK: - Reading

    /// Log time at which the next lease ends unless it is renewed.
    public var nextDeadline: UInt64? { deadlines.first?.deadline }

    /// Keys that became free since the last call and still are, sorted. Not part of the replicated state.
    public mutating func takeFreed() -> [String] {
        defer { freed = [] }
        return freed.sorted()
    }

    /// Keys whose holder changed since the last call, sorted. Not part of the replicated state.
    public mutating func takeChanged() -> [String] {
        defer { changed = [] }
        return changed.sorted()
    }

    /// Nil if the key was never leased, or its last lease is forgotten.
    public func lease(_ key: String, now: UInt64) -> LeaseView? { entries[key].map { view(key, $0, now) } }

    /// Known keys that begin with `prefix`, sorted; free ones included.
    public func keys(prefix: String) -> [String] { entries.keys.filter { $0.hasPrefix(prefix) }.sorted() }

    private func view(_ key: String, _ entry: Entry, _ now: UInt64) -> LeaseView {
        LeaseView(
            key: key, holder: entry.holder, token: entry.token, ttlMilliseconds: entry.ttl,
            expiresInMilliseconds: entry.deadline > now ? entry.deadline - now : 0)
    }

    /// `{"name","holder":{"id","pod","node"}|null,"token","ttlMilliseconds","expiresInMilliseconds"}`. The name of an election
    /// is its key without the prefix; one that nobody ever ran for has token 0.
    public func document(_ key: String, now: UInt64) -> JSONValue {
        let view =
            lease(key, now: now)
            ?? LeaseView(key: key, holder: nil, token: 0, ttlMilliseconds: 0, expiresInMilliseconds: 0)
        let isElection = key.hasPrefix(LeaseMachine.electionPrefix)
        var holder = JSONValue.null
        if let present = view.holder {
            var members: [JSONValue.Member] = [
                .init("id", .string(present.id)), .init("pod", JSONValue(present.info["pod"])),
                .init("node", JSONValue(present.info["node"])),
            ]
            for (name, value) in present.info.sorted(by: { $0.key < $1.key })
            where !["id", "pod", "node"].contains(name) {
                members.append(.init(name, .string(value)))
            }
            holder = .object(members)
        }
        return [
            "name": .string(isElection ? String(key.dropFirst(LeaseMachine.electionPrefix.count)) : key),
            "holder": holder,
            "token": JSONValue(view.token),
            "ttlMilliseconds": JSONValue(view.ttlMilliseconds),
            "expiresInMilliseconds": JSONValue(view.expiresInMilliseconds),
        ]
    }

    /// `{"elections":[…]}` with the documents of all elections by name.
    public func listDocument(now: UInt64) -> JSONValue {
        ["elections": .array(keys(prefix: LeaseMachine.electionPrefix).map { document($0, now: now) })]
    }

    // MARK: - Snapshot

    public func encode(into writer: inout ByteWriter) {
        writer.u8(LeaseMachine.version)
        writer.varint(lastToken)
        writer.count(entries.count)
        for (key, entry) in entries.sorted(by: { $0.key < $1.key }) {
            writer.string(key)
            writer.varint(entry.token)
            writer.varint(entry.ttl)
            writer.optional(entry.holder) { $1.encode(into: &$0) }
            writer.varint(entry.deadline)
        }
    }

    public init(decoding reader: inout ByteReader) throws(WireError) {
        let start = reader.position
        guard try reader.u8() == LeaseMachine.version else { throw .invalid(at: start, what: "version of the leases") }
        lastToken = try reader.varint()
        let count = try reader.count(max: LeaseLimits.keys, itemBytes: 5)
        entries.reserveCapacity(count)
        var last: String?
        var tokens: Set<UInt64> = []
        for _ in 0..<count {
            let at = reader.position
            let key = try reader.string(max: LeaseLimits.keyBytes)
            if let last, last >= key { throw .invalid(at: at, what: "order of leases") }
            last = key
            var entry = Entry(holder: nil, token: try reader.varint(), ttl: try reader.varint(), deadline: 0)
            entry.holder = try reader.optional { (r: inout ByteReader) throws(WireError) in
                try LeaseHolder(decoding: &r)
            }
            entry.deadline = try reader.varint()
            guard entry.token <= lastToken, tokens.insert(entry.token).inserted else {
                throw .invalid(at: at, what: "token")
            }
            if entry.holder != nil { heldCount += 1 }
            entries[key] = entry
        }
        rebuildDeadlines()
    }
}

extension UInt64 {
    /// Far deadlines stay far instead of trapping.
    func saturatingAdd(_ other: UInt64) -> UInt64 {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? .max : sum
    }
}
