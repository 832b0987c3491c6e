// Decides for each command of one client where it goes. Pure: the table and the arguments go in, a route comes out; the
// state is what a connection to Redis itself would hold (transaction, watched keys), which is why WATCH and MULTI pin the
// client to the master until EXEC, DISCARD or UNWATCH.

/// A command's arguments as they stand in a batch; only the leading ones if the command is streamed.
struct RedisArguments {
    var bytes: [UInt8]
    var ranges: [Range<Int>]
    /// All arguments are at hand.
    var isWhole: Bool
    /// How many the command has.
    var count: Int

    subscript(index: Int) -> ArraySlice<UInt8>? { index < ranges.count ? bytes[ranges[index]] : nil }

    func array(from first: Int) -> [[UInt8]] { ranges.dropFirst(first).map { Array(bytes[$0]) } }

    func isEqual(_ index: Int, _ lower: StaticString) -> Bool {
        guard let argument = self[index], argument.count == lower.utf8CodeUnitCount else { return false }
        return lower.withUTF8Buffer { word in
            zip(argument, word).allSatisfy { ($0 >= 65 && $0 <= 90 ? $0 | 32 : $0) == $1 }
        }
    }
}

enum RedisRoute: Equatable {
    /// Any replica that is fit, else the master.
    case read
    case master(mayWrite: Bool)
    /// The master; until its reply has come, nothing of this client may run elsewhere.
    case blocking(mayWrite: Bool)
    /// As `blocking`; if the reply is no error, the change holds for every further connection of this client.
    case state(RedisStateChange)
    /// The master; ends a transaction, whose queued state changes hold if the reply is no error and not nil.
    case exec
    /// From here on the client's connection is a pipe to the master.
    case tunnel
    case reset
    case quit

    /// What runs after it may run in another database, under another user, or wait for long.
    var changesContext: Bool {
        switch self {
        case .blocking, .state, .exec, .tunnel, .reset: true
        case .read, .master, .quit: false
        }
    }
}

enum RedisStateChange: Equatable {
    case select([UInt8])
    /// Arguments of AUTH.
    case auth([[UInt8]])
    case hello(version: [UInt8]?, auth: [[UInt8]]?, name: [UInt8]?)
    case name([UInt8])
    case info(attribute: [UInt8], value: [UInt8])
    case readonly(Bool)
}

struct RedisRouter {
    private(set) var inMulti = false
    private(set) var isWatching = false
    /// State changes queued in the transaction.
    private var queued: [RedisStateChange] = []

    /// True while everything must go to the one connection to the master, and that connection must not be exchanged.
    var isPinned: Bool { inMulti || isWatching }

    mutating func route(_ arguments: RedisArguments, table: RedisCommandTable) -> RedisRoute {
        guard let name = arguments[0].flatMap({ CommandName($0) }), let entry = table.entries[name] else {
            return .master(mayWrite: true)
        }
        if let special = entry.special { return route(special, arguments) }
        if isPinned {
            return entry.isBlocking && !inMulti
                ? .blocking(mayWrite: entry.mayWrite) : .master(mayWrite: entry.mayWrite)
        }
        // Large commands are not held back, so they could not be sent again: they go where no retry is needed.
        guard arguments.isWhole else {
            return entry.isBlocking ? .blocking(mayWrite: true) : .master(mayWrite: entry.mayWrite)
        }
        if !entry.subcommands.isEmpty {
            guard let sub = arguments[1].flatMap({ CommandName($0) }), let subentry = entry.subcommands[sub] else {
                return .master(mayWrite: entry.mayWrite)
            }
            return subentry.isRead ? .read : .master(mayWrite: subentry.mayWrite)
        }
        if entry.isBlocking && !(entry.isRead && !asksToBlock(arguments)) { return .blocking(mayWrite: entry.mayWrite) }
        return entry.isRead ? .read : .master(mayWrite: entry.mayWrite)
    }

    /// The connection's state began anew.
    mutating func reset() { self = RedisRouter() }

    /// What to apply now that EXEC has succeeded, or to drop.
    mutating func takeQueued() -> [RedisStateChange] {
        defer { queued = [] }
        return queued
    }

    /// XREAD is a read unless it says BLOCK before STREAMS.
    private func asksToBlock(_ arguments: RedisArguments) -> Bool {
        for i in 1..<max(arguments.count, 1) {
            if arguments.isEqual(i, "streams") { return false }
            if arguments.isEqual(i, "block") { return true }
        }
        return false
    }

    private mutating func route(_ special: RedisCommandTable.Special, _ arguments: RedisArguments) -> RedisRoute {
        if special == .stream { return .tunnel }
        // What is too large to be looked at is for the server to refuse.
        guard arguments.isWhole else { return .blocking(mayWrite: true) }
        switch special {
        case .select: return change(arguments.count == 2 ? arguments[1].map { .select(Array($0)) } : nil)
        case .auth: return change(arguments.count == 2 || arguments.count == 3 ? .auth(arguments.array(from: 1)) : nil)
        case .hello: return change(hello(arguments))
        case .readonly: return change(.readonly(true))
        case .readwrite: return change(.readonly(false))
        case .client:
            if arguments.isEqual(1, "setname"), arguments.count == 3 {
                return change(arguments[2].map { .name(Array($0)) })
            }
            if arguments.isEqual(1, "setinfo"), arguments.count == 4, let attribute = arguments[2],
                let value = arguments[3]
            {
                return change(
                    .info(attribute: attribute.map { $0 >= 65 && $0 <= 90 ? $0 | 32 : $0 }, value: Array(value)))
            }
            // Replies that do not come, or come unasked.
            if arguments.isEqual(1, "reply") || arguments.isEqual(1, "tracking") { return .tunnel }
            return .master(mayWrite: false)
        case .multi:
            inMulti = true
            return .master(mayWrite: false)
        case .exec:
            let wasInMulti = inMulti
            inMulti = false
            isWatching = false
            return wasInMulti ? .exec : .master(mayWrite: false)
        case .discard:
            // An error leaves the watch as it is: without MULTI there is nothing to discard.
            if inMulti {
                inMulti = false
                isWatching = false
                queued = []
            }
            return .master(mayWrite: false)
        case .watch:
            if !inMulti { isWatching = true }
            return .master(mayWrite: false)
        case .unwatch:
            // Pipelined writes before it may rely on the pinned order, which the master's connection keeps anyway.
            if !inMulti { isWatching = false }
            return .master(mayWrite: false)
        case .stream: return .tunnel
        case .quit: return .quit
        case .reset:
            reset()
            return .reset
        }
    }

    private mutating func change(_ change: RedisStateChange?) -> RedisRoute {
        guard let change else { return .blocking(mayWrite: false) }
        if inMulti {
            if queued.count < 64 { queued.append(change) }
            return .master(mayWrite: false)
        }
        return .state(change)
    }

    /// HELLO [version [AUTH user password] [SETNAME name]]; nil if malformed, which the server will say.
    private func hello(_ arguments: RedisArguments) -> RedisStateChange? {
        var auth: [[UInt8]]?
        var name: [UInt8]?
        var i = 2
        while i < arguments.count {
            if arguments.isEqual(i, "auth"), let user = arguments[i + 1], let password = arguments[i + 2] {
                auth = [Array(user), Array(password)]
                i += 3
            } else if arguments.isEqual(i, "setname"), let value = arguments[i + 1] {
                name = Array(value)
                i += 2
            } else {
                return nil
            }
        }
        return .hello(version: arguments[1].map { Array($0) }, auth: auth, name: name)
    }
}

/// What a connection to Redis holds beside data, and how to bring a new connection to it.
struct RedisConnectionState: Equatable {
    /// Grows with each change; connections remember how far they have come. 0 is a fresh connection's state.
    private(set) var version = 0
    private(set) var auth: [[UInt8]]?
    private var helloVersion: [UInt8]?
    private var database: [UInt8]?
    private var name: [UInt8]?
    private var info: [(attribute: [UInt8], value: [UInt8])] = []
    private var isReadonly: Bool?

    static func == (a: Self, b: Self) -> Bool { a.version == b.version && a.replay == b.replay }

    mutating func apply(_ change: RedisStateChange) {
        version += 1
        switch change {
        case .select(let database): self.database = database
        case .auth(let arguments): auth = arguments
        case .hello(let version, let auth, let name):
            if let version { helloVersion = version }
            if let auth { self.auth = auth }
            if let name { self.name = name }
        case .name(let name): self.name = name
        case .info(let attribute, let value):
            info.removeAll { $0.attribute == attribute }
            if info.count < 8 { info.append((attribute, value)) }
        case .readonly(let value): isReadonly = value
        }
    }

    /// After RESET: nothing holds any more, but no connection counts as up to date.
    mutating func clear() {
        let version = self.version + 1
        self = RedisConnectionState()
        self.version = version
    }

    /// The commands that bring a fresh connection here, in the only order that works with passwords.
    var replay: [[UInt8]] {
        var commands: [[UInt8]] = []
        func add(_ words: [String], _ rest: [[UInt8]]) {
            commands.append(RESP.command(words.map { Array($0.utf8) } + rest))
        }
        if let auth { add(["AUTH"], auth) }
        if let helloVersion { add(["HELLO"], [helloVersion]) }
        if let name { add(["CLIENT", "SETNAME"], [name]) }
        for entry in info { add(["CLIENT", "SETINFO"], [entry.attribute, entry.value]) }
        if let isReadonly { add([isReadonly ? "READONLY" : "READWRITE"], []) }
        if let database { add(["SELECT"], [database]) }
        return commands
    }
}
