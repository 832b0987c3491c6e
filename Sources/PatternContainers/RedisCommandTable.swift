// What each command of a server does, learnt from its own `COMMAND` reply, so that modules and new versions are right
// without a release of ours (tables in proxies rot: reads and writes get mixed up as Redis grows). Only what concerns the
// connection itself is built in, for it is the proxy's own business.

/// A command's name in lower case, packed; names are at most 24 bytes.
struct CommandName: Hashable {
    private var a: UInt64 = 0
    private var b: UInt64 = 0
    private var c: UInt64 = 0

    init?(_ bytes: ArraySlice<UInt8>) {
        guard !bytes.isEmpty, bytes.count <= 24 else { return nil }
        var i = 0
        for byte in bytes {
            let lower = UInt64(byte >= 65 && byte <= 90 ? byte | 32 : byte) << UInt64(8 * (i & 7))
            switch i >> 3 {
            case 0: a |= lower
            case 1: b |= lower
            default: c |= lower
            }
            i += 1
        }
    }

    init?(_ text: String) { self.init(Array(text.utf8)[...]) }
}

struct RedisCommandTable {
    /// Commands that change or end the connection, and so are the proxy's business.
    enum Special {
        case select, auth, hello, client, readonly, readwrite
        case multi, exec, discard, watch, unwatch
        /// The connection ceases to be one answer to each request.
        case stream
        case quit, reset
    }

    struct Entry {
        var special: Special?
        /// May run on a replica.
        var isRead = false
        /// May hold the connection until something happens.
        var isBlocking = false
        /// May change data.
        var mayWrite = false
        /// By subcommand, for containers such as OBJECT and XINFO.
        var subcommands: [CommandName: Entry] = [:]
    }

    private(set) var entries: [CommandName: Entry] = [:]
    /// Commands that the server told of; 0 until then, when everything goes to the master.
    private(set) var learnt = 0

    static let builtIn: [(String, Special)] = [
        ("select", .select), ("auth", .auth), ("hello", .hello), ("client", .client), ("readonly", .readonly),
        ("readwrite", .readwrite),
        ("multi", .multi), ("exec", .exec), ("discard", .discard), ("watch", .watch), ("unwatch", .unwatch),
        ("subscribe", .stream), ("psubscribe", .stream), ("ssubscribe", .stream), ("unsubscribe", .stream),
        ("punsubscribe", .stream),
        ("sunsubscribe", .stream), ("monitor", .stream), ("sync", .stream), ("psync", .stream), ("quit", .quit),
        ("reset", .reset),
    ]

    init() {
        for (name, special) in RedisCommandTable.builtIn {
            if let key = CommandName(name) { entries[key] = Entry(special: special) }
        }
    }

    /// From the reply to `COMMAND`. Entries that are malformed are left out, so that those commands go to the master.
    init(reply: RESPValue) {
        self.init()
        for item in (reply.items ?? []).prefix(10_000) {
            guard let (name, entry) = RedisCommandTable.entry(item), let key = CommandName(name) else { continue }
            learnt += 1
            if entries[key]?.special == nil { entries[key] = entry }
        }
    }

    private static func entry(_ item: RESPValue) -> (String, Entry)? {
        guard let fields = item.items, fields.count >= 3, let name = fields[0].text?.lowercased(),
            let flags = fields[2].items
        else { return nil }
        let words = Set(flags.compactMap(\.text))
        let categories = Set((fields.count > 6 ? fields[6].items ?? [] : []).compactMap(\.text))
        var entry = Entry()
        // A cursor of SCAN and its kin is a position in one server's hash table: it means nothing to another server, so an
        // iteration must not move between replicas.
        let isCursor = name.hasSuffix("scan")
        entry.isRead = words.contains("readonly") && !words.contains("write") && !words.contains("admin") && !isCursor
        entry.isBlocking = words.contains("blocking")
        entry.mayWrite = words.contains("write") || words.contains("may_replicate") || categories.contains("@scripting")
        if fields.count > 9, let subcommands = fields[9].items {
            for sub in subcommands.prefix(1_000) {
                guard let (full, subentry) = RedisCommandTable.entry(sub), let bar = full.firstIndex(of: "|"),
                    let key = CommandName(String(full[full.index(after: bar)...]))
                else { continue }
                entry.subcommands[key] = subentry
            }
        }
        return (name, entry)
    }
}
