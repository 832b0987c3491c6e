// Sealed datagrams: what gossip sends. Integers are little-endian.
//
//     version u8 = 1 | sender u64 | start counter u32 | counter u64 | cipher text | tag, 16 bytes
//     └──────────────── authenticated, 21 bytes ──────────────────┘
//
// The key is derived for each sender and start of it (HKDF-SHA256), the nonce is the counter. A process counts from 0 and
// a start counter is never used twice, so no nonce ever repeats under a key. The overhead is 37 bytes.
import COpenSSL
import Model
import Wire

enum DatagramFormat {
    static let version: UInt8 = 1
    static let headerBytes = 21

    static func key(_ secret: [UInt8], sender: UInt64, start: UInt32) throws(SecurityError) -> [UInt8] {
        var info = ByteWriter(capacity: 32)
        info.raw("coterie datagram v1".utf8)
        info.u64(sender)
        info.u32(start)
        return try KeyDerivation.expand(secret, info: info.bytes, count: AESGCM.keyBytes)
    }

    static func nonce(_ counter: UInt64) -> [UInt8] {
        var nonce = ByteWriter(capacity: AESGCM.nonceBytes)
        nonce.u32(0)
        nonce.u64(counter)
        return nonce.bytes
    }
}

/// Seals a node's outgoing datagrams; one for each process of a node, and never copied: two with the same counter would use
/// a nonce twice, which breaks AES-GCM.
public struct DatagramSealer: ~Copyable {
    /// What sealing adds.
    public static let overhead = DatagramFormat.headerBytes + AESGCM.tagBytes
    /// Most plain text in one datagram.
    public static let maximumPlain = Limits.datagramBytes - overhead

    private let aes: AESGCM
    private let key: [UInt8]
    private let sender: UInt64
    private let start: UInt32
    private var counter: UInt64 = 0

    /// `startCounter` must be higher than in every earlier run of this node.
    public init(key: ClusterKey, sender: NodeID, startCounter: UInt64) throws(SecurityError) {
        guard let start = UInt32(exactly: startCounter) else { throw .limit("a node can start 2^32 times") }
        // A value that can not be copied is set as a whole, after all that may fail.
        let derived = try DatagramFormat.key(key.datagramSecret, sender: sender.short, start: start)
        let aes = try AESGCM()
        self.aes = aes
        self.key = derived
        self.sender = sender.short
        self.start = start
    }

    public mutating func seal(_ plain: ArraySlice<UInt8>) throws(SecurityError) -> [UInt8] {
        guard plain.count <= DatagramSealer.maximumPlain else {
            throw .limit("a datagram holds \(DatagramSealer.maximumPlain) bytes, not \(plain.count)")
        }
        guard counter < .max else { throw .limit("no counters are left") }
        var message = ByteWriter(capacity: plain.count + DatagramSealer.overhead)
        message.u8(DatagramFormat.version)
        message.u64(sender)
        message.u32(start)
        message.u64(counter)
        var sealed = message.bytes
        // Counted before it is used: a failure must not lead to the same nonce again.
        defer { counter += 1 }
        try aes.seal(plain, onto: &sealed, key: key, nonce: DatagramFormat.nonce(counter))
        return sealed
    }
}

/// Opens what other nodes have sealed. Everyone with the cluster's key is believed to be the sender it names.
///
/// Remembers at most ``senderLimit`` senders and forgets the one that was silent longest; datagrams of a forgotten sender
/// could be replayed, which only a member that makes up thousands of names can bring about.
public struct DatagramOpener: ~Copyable {
    public static let senderLimit = 4_096

    private struct Sender {
        var id: UInt64
        var start: UInt32
        var key: [UInt8]
        var window: ReplayWindow
        // A list through the array, from the one heard last to the one heard longest ago.
        var newer: Int
        var older: Int
    }

    private let aes: AESGCM
    private let secret: [UInt8]
    private let limit: Int
    private var senders: [Sender] = []
    private var places: [UInt64: Int] = [:]
    private var newest = -1
    private var oldest = -1

    public init(key: ClusterKey) throws(SecurityError) {
        try self.init(key: key, senderLimit: DatagramOpener.senderLimit)
    }

    init(key: ClusterKey, senderLimit: Int) throws(SecurityError) {
        let aes = try AESGCM()
        self.aes = aes
        secret = key.datagramSecret
        limit = senderLimit
    }

    /// Senders remembered.
    public var senderCount: Int { senders.count }

    /// The plain text and who sealed it, if it is authentic and new. Anything else changes nothing and takes no memory but for
    /// the datagram's own plain text.
    public mutating func open(
        _ sealed: ArraySlice<UInt8>
    ) throws(SecurityError) -> (sender: UInt64, startCounter: UInt64, plain: [UInt8]) {
        guard sealed.count >= DatagramSealer.overhead, sealed.count <= Limits.datagramBytes else {
            throw .malformedDatagram
        }
        let (version, sender, start, counter): (UInt8, UInt64, UInt32, UInt64)
        do {
            var reader = ByteReader(sealed)
            (version, sender, start, counter) = (try reader.u8(), try reader.u64(), try reader.u32(), try reader.u64())
        } catch { throw .malformedDatagram }
        guard version == DatagramFormat.version else { throw .malformedDatagram }

        let place = places[sender]
        let key: [UInt8]
        var isNewStart = true
        if let place {
            guard start >= senders[place].start else { throw .staleSender }
            isNewStart = start > senders[place].start
            // What was seen is refused before anything is computed.
            if !isNewStart && !senders[place].window.admits(counter) { throw .replayedDatagram }
        }
        if let place, !isNewStart {
            key = senders[place].key
        } else {
            key = try DatagramFormat.key(secret, sender: sender, start: start)
        }
        guard
            let plain = aes.open(
                sealed, header: DatagramFormat.headerBytes, key: key, nonce: DatagramFormat.nonce(counter))
        else {
            throw .forgedDatagram
        }

        // Authentic: from here on state may change.
        if let place {
            if isNewStart {
                senders[place].start = start
                senders[place].key = key
                senders[place].window = ReplayWindow()
            }
            senders[place].window.remember(counter)
            if place != newest {
                unlink(place)
                linkAsNewest(place)
            }
        } else {
            var window = ReplayWindow()
            window.remember(counter)
            remember(Sender(id: sender, start: start, key: key, window: window, newer: -1, older: -1))
        }
        return (sender, UInt64(start), plain)
    }

    private mutating func remember(_ sender: Sender) {
        let place: Int
        if senders.count < limit {
            place = senders.count
            senders.append(sender)
        } else {
            place = oldest
            unlink(place)
            places[senders[place].id] = nil
            senders[place] = sender
        }
        places[sender.id] = place
        linkAsNewest(place)
    }

    private mutating func unlink(_ place: Int) {
        let (newer, older) = (senders[place].newer, senders[place].older)
        if newer >= 0 { senders[newer].older = older } else { newest = older }
        if older >= 0 { senders[older].newer = newer } else { oldest = newer }
    }

    private mutating func linkAsNewest(_ place: Int) {
        senders[place].newer = -1
        senders[place].older = newest
        if newest >= 0 { senders[newest].newer = place } else { oldest = place }
        newest = place
    }
}
