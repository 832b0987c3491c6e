import Model
import Testing
import Wire

@Suite struct PodCodecTests {
    private static let probe = Probe(action: .http(path: "/", port: 80), initialDelay: .seconds(1))

    /// Every field is set, every case of every enum is there.
    static let full = PodSpec(
        name: "web", labels: ["app": "web", "b": ""], annotations: [PodSpec.listenAnnotation: "proxy=6379"],
        initContainers: [
            ContainerSpec(name: "side", image: "i", restartAlways: true, startupProbe: Probe(action: .exec(["true"])))
        ],
        containers: [
            ContainerSpec(
                name: "main", image: "localhost/host", command: ["/bin/sh", "-c"], arguments: ["echo é"],
                workingDirectory: "/tmp",
                environment: [
                    EnvironmentVariable(name: "A", value: .literal("1")),
                    EnvironmentVariable(name: "B", value: .field("status.podIP")),
                ],
                mounts: [
                    VolumeMount(name: "v", mountPath: "/v", readOnly: true, subPath: "s"),
                    VolumeMount(name: "v", mountPath: "/w"),
                ],
                ports: [ContainerPort(name: "http", port: 80), ContainerPort(port: 81)],
                resources: Resources(memoryBytes: 1 << 30, cpuMilli: 500),
                livenessProbe: Probe(action: .tcp(port: 9)), readinessProbe: probe)
        ],
        volumes: [
            Volume(name: "v", source: .emptyDir(inMemory: true, sizeLimit: 4_096)),
            Volume(name: "h", source: .hostPath("/x", type: "Directory")),
            Volume(name: "f", source: .files(["b": [0, 255], "a/c": []])),
        ],
        restartPolicy: .onFailure, terminationGracePeriod: .milliseconds(1_500), hostNetwork: true, hostname: "h",
        nodeName: "n1",
        nodeSelector: ["zone": "eu"], activeDeadline: .seconds(60))

    static let status = PodStatus(
        phase: .running, reason: "R", message: "m",
        containers: [
            ContainerStatus(name: "a", state: .waiting(reason: "CrashLoopBackOff"), restartCount: 300, isInit: true),
            ContainerStatus(name: "b", state: .running, ready: true),
            ContainerStatus(name: "c", state: .terminated(exitCode: -1, reason: "Error")),
        ], sandbox: "namespaces")

    private func bytes(_ status: PodStatus) -> [UInt8] {
        var writer = ByteWriter()
        status.encode(into: &writer)
        return writer.bytes
    }

    @Test func aSpecificationReadsBackWhole() throws {
        var reader = ByteReader(Self.full.encoded)
        #expect(try PodSpec(decoding: &reader) == Self.full)
        try reader.finish()
    }

    @Test func aStatusReadsBackWhole() throws {
        var reader = ByteReader(bytes(Self.status))
        #expect(try PodStatus(decoding: &reader) == Self.status)
        try reader.finish()
    }

    /// Golden vectors: what other versions wrote must be read for ever.
    @Test func theBytesStayWhatTheyAre() {
        let small = PodSpec(
            name: "p", labels: ["a": "b"], containers: [ContainerSpec(name: "c", image: "i", command: ["x"])])
        let container: [UInt8] = [1, 99, 1, 105, 1, 1, 120, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        let tail: [UInt8] = [0, 0, 0x00, 0xAC, 0x23, 0xFC, 0x06, 0, 0, 0, 0, 0, 0, 0, 0]
        #expect(small.encoded == [1, 1, 112, 1, 1, 97, 1, 98, 0, 0, 1] + container + tail)
        #expect(CRC32C.checksum(Self.full.encoded) == 0x6442_F977)
        #expect(Self.full.encoded.count == 352)
        let state = PodStatus(
            phase: .failed, containers: [ContainerStatus(name: "c", state: .terminated(exitCode: 137, reason: "E"))])
        #expect(bytes(state) == [1, 3, 0, 0, 0, 1, 1, 99, 2, 137, 0, 0, 0, 1, 69, 0, 0, 0])
    }

    @Test func everyPrefixIsRefused() {
        let whole = Self.full.encoded
        for length in 0..<whole.count {
            #expect(throws: WireError.self) {
                var reader = ByteReader(whole[..<length])
                _ = try PodSpec(decoding: &reader)
            }
        }
    }

    @Test func moreContainersThanTheLimitAreRefused() {
        var spec = Self.full
        spec.containers = (0...PodLimits.containers).map { ContainerSpec(name: "c\($0)", image: "i") }
        #expect(throws: WireError.self) {
            var reader = ByteReader(spec.encoded)
            _ = try PodSpec(decoding: &reader)
        }
    }

    @Test func aSpecificationOverTheLimitInBytesIsRefused() {
        var spec = Self.full
        spec.volumes = (0..<3).map {
            Volume(name: "v\($0)", source: .files(["f": [UInt8](repeating: 1, count: PodLimits.specBytes / 2)]))
        }
        #expect(throws: WireError.self) {
            var reader = ByteReader(spec.encoded)
            _ = try PodSpec(decoding: &reader)
        }
    }

    @Test func anotherVersionIsRefused() {
        var bytes = Self.full.encoded
        bytes[0] = 2
        #expect(throws: WireError.self) {
            var reader = ByteReader(bytes)
            _ = try PodSpec(decoding: &reader)
        }
    }

    @Test func longMessagesAreCutSoThatTheReaderTakesThem() throws {
        let long = PodStatus(
            phase: .failed, reason: String(repeating: "r", count: 9_999), message: String(repeating: "é", count: 99_999)
        )
        var reader = ByteReader(bytes(long))
        let read = try PodStatus(decoding: &reader)
        #expect(read.message.utf8.count == 16 << 10)
        #expect(read.reason.utf8.count == 1_024)
    }

    @Test func damagedBytesAreRefusedOrReadAsAValueThatReadsBack() throws {
        var generator = SeededGenerator(seed: 8)
        var progress = ByteWriter()
        Self.progress.encode(into: &progress)
        let seeds = [Self.full.encoded, bytes(Self.status), progress.bytes]
        var refused = 0
        for round in 0..<30_000 {
            var data = seeds[round % 3]
            if generator.chance(0.1) {
                data = (0..<Int.random(in: 0..<200, using: &generator)).map { _ in
                    UInt8(truncatingIfNeeded: generator.next())
                }
            }
            for _ in 0..<Int.random(in: 1...3, using: &generator) where !data.isEmpty {
                data[Int.random(in: 0..<data.count, using: &generator)] = UInt8(truncatingIfNeeded: generator.next())
            }
            var reader = ByteReader(data)
            var writer = ByteWriter()
            do {
                switch round % 3 {
                case 0: try PodSpec(decoding: &reader).encode(into: &writer)
                case 1: try PodStatus(decoding: &reader).encode(into: &writer)
                default: try GatherProgress(decoding: &reader).encode(into: &writer)
                }
                // One value has one form.
                #expect(writer.bytes == Array(data[..<reader.position]))
            } catch { refused += 1 }
        }
        #expect(refused > 3_000)
    }

    static let progress = GatherProgress(
        total: 10, successful: 3, failed: 1, timedOut: 1, cancelled: 1, running: 2, pending: 2, retried: 4, hedged: 1,
        milliseconds: 1_234,
        bytesIn: 1 << 40, bytesOut: 7, failures: [GatherFailure(shard: 6, node: "n2", attempts: 4, error: "exit 1")])

    @Test func gatherProgressReadsBackAndItsDocumentIsThatOfTheContract() throws {
        var writer = ByteWriter()
        Self.progress.encode(into: &writer)
        var reader = ByteReader(writer.bytes)
        #expect(try GatherProgress(decoding: &reader) == Self.progress)
        #expect(
            Self.progress.document(id: "g1", state: .running).text()
                == #"{"id":"g1","state":"running","shards":{"total":10,"successful":3,"failed":1,"timedOut":1,"cancelled":1,"#
                + #""running":2,"pending":2},"retried":4,"hedged":1,"milliseconds":1234,"bytesIn":1099511627776,"bytesOut":7,"#
                + #""failures":[{"shard":6,"node":"n2","attempts":4,"error":"exit 1"}]}"#)
    }
}
