import Model
import Testing

@testable import Manifests

@Suite("What expand prints")
struct RoundTripTests {
    @Test func randomPodsReadBackAsTheyWere() throws {
        for seed in UInt64(0)..<200 {
            var maker = PodMaker(seed: seed)
            let pods = (0..<3).map { maker.pod("pod-\($0)") }
            let text = PodYAML.text(pods)
            let objects: [ManifestObject]
            do {
                objects = try ManifestParser.parse(file: "seed-\(seed)", text: Array(text.utf8))
            } catch {
                Issue.record("seed \(seed): \(error)\n\(text)")
                return
            }
            let back = objects.compactMap { if case .pod(let spec) = $0 { spec } else { nil } }
            guard back == pods else {
                Issue.record("seed \(seed) differs:\n\(text)\n\(pods)\n\(back)")
                return
            }
            #expect(PodYAML.text(back) == text)
        }
    }

    @Test func scalarsAreQuotedOnlyWhereNeeded() {
        for text in [
            "a", "coterie", "/bin/sh", "127.0.0.1", "a b", "http://x/y", "--to", "-c", "a=b",
        ] {
            #expect(YAMLWriter.scalar(text) == text)
        }
        for text in [
            "", " a", "a ", "yes", "5", "1.5", "~", "a: b", "a #b", "---x", "-", "-5", "12:30", "2024-01-01", "*a", "é",
            "a\nb",
            "\u{85}", "\u{FEFF}",
        ] {
            #expect(YAMLWriter.scalar(text).hasPrefix("\""), "\(text)")
        }
        #expect(YAMLWriter.scalar("a\u{0}\u{2028}\"\\") == "\"a\\x00\\u2028\\\"\\\\\"")
    }
}

/// Random pods that a manifest can say.
struct PodMaker {
    private var generator: SeededGenerator

    init(seed: UInt64) { generator = SeededGenerator(seed: seed) }

    private mutating func below(_ n: Int) -> Int { Int.random(in: 0..<n, using: &generator) }
    private mutating func pick<T>(_ items: [T]) -> T { items[below(items.count)] }
    private mutating func maybe<T>(_ make: (inout PodMaker) -> T) -> T? { below(2) == 0 ? make(&self) : nil }
    private mutating func some<T>(_ limit: Int, _ make: (inout PodMaker, Int) -> T) -> [T] {
        let count = below(limit + 1)
        return (0..<count).map { make(&self, $0) }
    }

    private static let pieces = [
        "a", "B", "0", "-", " ", "\n", "\t", ":", "#", "'", "\"", "\\", "{", "}", "[", "]", ",", "&", "*", "!", "|",
        ">", "%", "@", "`", "é", "\u{1F600}",
        "\u{85}", "\u{2028}", "\u{FEFF}", "\u{1}", "\u{7F}", "\r", "yes", "null", "1e3", ": ", " #", "---", "...",
        "\n  ", "$(x)", "~", "=", "<<",
    ]

    mutating func text(_ limit: Int = 6) -> String { some(limit) { maker, _ in maker.pick(PodMaker.pieces) }.joined() }
    private mutating func nonEmpty() -> String { "x" + text() }
    private mutating func path() -> String {
        "/" + pick(["a", "b/c", "run/x.y", "with space", "ü", "yes"]) + "\(below(1_000_000))"
    }

    private mutating func map() -> [String: String] {
        var map: [String: String] = [:]
        for i in 0..<below(3) { map["k\(i)" + pick(["", "-x", ".y"])] = text() }
        return map
    }

    private mutating func probe(_ single: Bool) -> Probe {
        let action: Probe.Action =
            switch below(3) {
            case 0: .exec([nonEmpty(), text()])
            case 1: .tcp(port: UInt16(1 + below(65_535)))
            default: .http(path: pick(["/", "/a?b=c#d", "/x:y"]), port: UInt16(1 + below(65_535)))
            }
        return Probe(
            action: action, initialDelay: .seconds(Int64(below(3))), period: .seconds(Int64(1 + below(12))),
            timeout: .seconds(Int64(1 + below(3))),
            successThreshold: single ? 1 : 1 + below(3), failureThreshold: 1 + below(5))
    }

    private mutating func container(_ name: String, isInit: Bool, volumes: [Volume]) -> ContainerSpec {
        var container = ContainerSpec(
            name: name, image: pick(["localhost/host", "box", "registry.example/a/b:1.2", "1"]))
        container.command = [nonEmpty()] + some(8) { maker, _ in maker.text() }
        container.arguments = some(12) { maker, _ in maker.text() }
        container.workingDirectory = maybe { $0.path() }
        container.environment = some(4) { maker, i in
            let field = maker.pick(["metadata.name", "status.podIP", "metadata.labels['a']"])
            return EnvironmentVariable(
                name: maker.pick(["yes", "A", "_b", "null"]) + "\(i)",
                value: maker.below(3) == 0 ? .field(field) : .literal(maker.text(10)))
        }
        for (i, volume) in volumes.enumerated() where below(2) == 0 {
            container.mounts.append(
                VolumeMount(
                    name: volume.name, mountPath: path() + "-\(i)", readOnly: below(2) == 0,
                    subPath: maybe { "s\($0.below(9))/t" }))
        }
        container.ports = some(2) { maker, i in
            ContainerPort(name: maker.maybe { _ in "\(name)\(i)" }, port: UInt16(1 + maker.below(65_535)))
        }
        container.resources = Resources(
            memoryBytes: maybe { UInt64(1 + $0.below(1 << 40)) }, cpuMilli: maybe { UInt64(1 + $0.below(10_000)) })
        container.restartAlways = isInit && below(2) == 0
        if !isInit || container.restartAlways {
            container.startupProbe = maybe { $0.probe(true) }
            container.livenessProbe = maybe { $0.probe(true) }
            container.readinessProbe = maybe { $0.probe(false) }
        }
        return container
    }

    private mutating func volume(_ i: Int) -> Volume {
        let source: Volume.Source
        switch below(3) {
        case 0: source = .emptyDir(inMemory: below(2) == 0, sizeLimit: maybe { UInt64(1 + $0.below(1 << 30)) })
        case 1: source = .hostPath(path(), type: maybe { $0.pick(["Directory", "FileOrCreate"]) })
        default:
            var files: [String: [UInt8]] = [:]
            for k in 0..<below(4) {
                let binary = below(3) == 0
                files[pick(["a\(k).sh", "yes\(k)", "d\(k)/e f"])] =
                    binary ? some(9) { maker, _ in UInt8(maker.below(256)) } : Array((text(8) + "\n").utf8)
            }
            source = .files(files)
        }
        return Volume(name: "v\(i)", source: source)
    }

    mutating func pod(_ name: String) -> PodSpec {
        let volumes = some(3) { maker, i in maker.volume(i) }
        var pod = PodSpec(name: name, containers: [])
        pod.labels = below(2) == 0 ? ["app": pick(["x", "", "1", "yes"]), "example.com/t": "a.b_c"] : [:]
        pod.annotations = map()
        pod.initContainers = some(2) { maker, i in maker.container("i\(i)", isInit: true, volumes: volumes) }
        pod.containers = (0...below(2)).map { container("c\($0)", isInit: false, volumes: volumes) }
        if below(2) == 0 { pod.annotations[PodSpec.listenAnnotation] = "c0=6379" }
        pod.volumes = volumes
        pod.restartPolicy = pick(RestartPolicy.allCases)
        pod.terminationGracePeriod = .seconds(Int64(pick([0, 1, 30, 60])))
        pod.hostNetwork = below(2) == 0
        pod.hostname = maybe { $0.pick(["h", "1", "no"]) }
        pod.nodeName = maybe { $0.pick(["node-1", "Node 1", "5", "~"]) }
        pod.nodeSelector = map()
        pod.activeDeadline = maybe { .seconds(Int64(1 + $0.below(1_000))) }
        return pod
    }
}
