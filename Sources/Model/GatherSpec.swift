/// What a scatter-gather job does: the ScatterGather kind of a manifest, and what `coterie scatter` builds from its flags.
/// A root pod splits the input into shards, hands them to leaf pods and merges what they return.
public struct ScatterGatherSpec: Hashable, Sendable {
    /// How input becomes shards; exactly one.
    public enum Sharder: Hashable, Sendable {
        /// At most this many lines a shard.
        case lines(Int)
        /// This many near-equal shards; records stay whole.
        case shards(Int)
        /// At most this many bytes a shard; records stay whole.
        case bytes(UInt64)
        /// This many shards without input: the leaf goes by `COTERIE_SHARD`.
        case index(Int)
        /// One shard per input line, given to the leaf as `$1`.
        case arguments
    }

    /// When a second attempt of a slow shard is started elsewhere.
    public enum Hedge: Hashable, Sendable, CustomStringConvertible {
        /// By the times of the shards that are done.
        case automatic
        case off
        case after(TimeSpan)

        /// `auto`, `off` or a positive duration; nil for anything else.
        public init?(text: some StringProtocol) {
            switch text {
            case "auto": self = .automatic
            case "off": self = .off
            default:
                guard let span = TimeSpan(text: text), span > .zero else { return nil }
                self = .after(span)
            }
        }

        public var description: String {
            switch self {
            case .automatic: "auto"
            case .off: "off"
            case .after(let span): span.description
            }
        }
    }

    /// The object's name; the shorthand makes one up.
    public var name: String
    /// `/bin/sh -c` text, run once a shard: shard on stdin, result on stdout.
    public var leaf: String
    /// `/bin/sh -c` text, run in the root pod: results on stdin in shard order. Nil concatenates.
    public var merge: String?
    /// The merge also finds the results as files in `$COTERIE_RESULTS`.
    public var mergeFiles: Bool
    public var sharder: Sharder
    /// Leaf pods, from 1 to ``parallelLimit``.
    public var parallel: Int
    /// Per attempt of a shard. Nil is none but ``deadline``.
    public var shardTimeout: TimeSpan?
    /// For the whole job; then the result is partial.
    public var deadline: TimeSpan?
    /// Attempts of a shard after the first.
    public var retries: Int
    public var hedge: Hedge
    /// The share of shards (0…1) that must succeed for the job to succeed.
    public var minSuccess: Double
    /// Results as they come instead of in shard order; not together with ``merge``.
    public var unordered: Bool
    /// One leaf process for many shards, framed.
    public var streamLeaf: Bool
    public var image: String
    /// Tags that the leaves' nodes must have.
    public var nodeSelector: [String: String]
    /// Shipped to the leaves' working directory: relative path to content.
    public var files: [String: [UInt8]]
    /// Input that the manifest holds itself; nil when a client streams it, or when there is none (``Sharder/index(_:)``).
    public var input: [UInt8]?

    public static let parallelLimit = 1_000
    public static let shardLimit = 1_000_000
    public static let retryLimit = 100
    public static let defaultParallel = 3
    public static let defaultRetries = 3

    public init(
        name: String, leaf: String, merge: String? = nil, mergeFiles: Bool = false, sharder: Sharder,
        parallel: Int = ScatterGatherSpec.defaultParallel, shardTimeout: TimeSpan? = nil, deadline: TimeSpan? = nil,
        retries: Int = ScatterGatherSpec.defaultRetries, hedge: Hedge = .automatic, minSuccess: Double = 1,
        unordered: Bool = false,
        streamLeaf: Bool = false, image: String = "localhost/host", nodeSelector: [String: String] = [:],
        files: [String: [UInt8]] = [:], input: [UInt8]? = nil
    ) {
        self.name = name
        self.leaf = leaf
        self.merge = merge
        self.mergeFiles = mergeFiles
        self.sharder = sharder
        self.parallel = parallel
        self.shardTimeout = shardTimeout
        self.deadline = deadline
        self.retries = retries
        self.hedge = hedge
        self.minSuccess = minSuccess
        self.unordered = unordered
        self.streamLeaf = streamLeaf
        self.image = image
        self.nodeSelector = nodeSelector
        self.files = files
        self.input = input
    }
}
