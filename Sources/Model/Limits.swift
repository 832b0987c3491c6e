/// A limit on everything: what a decoder or a queue refuses before it takes memory.
public enum Limits {
    /// Largest frame on a stream, header excluded.
    public static let frameBytes = 16 << 20
    /// Largest sealed datagram.
    public static let datagramBytes = 1_400
    /// Largest job body unless a tube is set otherwise; beanstalkd's own default is 65 535.
    public static let jobBytes = 65_535
    /// Longest tube, election, pod, node or container name in bytes.
    public static let nameBytes = 200
    /// Most tags of one member, and the longest key and value together.
    public static let tags = 32
    public static let tagBytes = 256
    /// Largest single command in the replicated log.
    public static let commandBytes = 4 << 20
    /// Largest manifest file that a client reads.
    public static let manifestBytes = 4 << 20
}
