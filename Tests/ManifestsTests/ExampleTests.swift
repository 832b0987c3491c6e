import Foundation
import Model
import Testing

@testable import Manifests

@Suite("Examples, explain and configuration")
struct ExampleTests {
    static let examples = [
        "sidecar-logs", "ambassador-redis", "adapter", "leader-election", "work-queue", "scatter-gather",
    ]

    static func read(_ name: String) throws -> [UInt8] {
        let root = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath().deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
        return Array(try Data(contentsOf: root.appendingPathComponent("cluster-configs/\(name).yaml")))
    }

    @Test(arguments: ["sidecar-logs", "ambassador-redis", "adapter", "leader-election", "work-queue", "scatter-gather"])
    func examplesExpandToPodsThatReadBack(name: String) throws {
        let pods = try Expansion.pods(of: ManifestParser.parse(file: name, text: ExampleTests.read(name))).map(\.spec)
        #expect(!pods.isEmpty)
        let text = PodYAML.text(pods)
        let back = try ManifestParser.parse(file: "expanded", text: Array(text.utf8)).compactMap {
            if case .pod(let spec) = $0 { spec } else { nil }
        }
        #expect(back == pods)
    }

    @Test func theScatterGatherExampleHoldsItsInput() throws {
        let objects = try ManifestParser.parse(file: "x", text: ExampleTests.read("scatter-gather"))
        guard case .scatterGather(let spec) = objects.first else {
            Issue.record("no ScatterGather")
            return
        }
        #expect(spec.sharder == .lines(1) && spec.deadline == .seconds(300) && spec.hedge == .automatic)
        #expect(spec.input.map { $0.split(separator: 10).count } == 4)
        #expect(spec.leaf == "tr -s ' ' '\\n' | sort | uniq -c")
    }

    @Test func explainShowsEveryFieldOfEveryKind() throws {
        func walk(_ schema: Schema, _ path: String) throws {
            let text = try Explain.text(path)
            #expect(text.contains("FIELDS\n"))
            for field in schema.fields {
                #expect(text.contains("  \(field.name) <"), "\(path).\(field.name)")
                if let inner = field.kind.schema {
                    try walk(inner, path + "." + field.name)
                } else {
                    #expect(try Explain.text(path + "." + field.name).contains("<\(field.kind.label)>"))
                }
            }
        }
        for schema in PatternSchema.kinds { try walk(schema, schema.name) }
    }

    @Test func explainReadsAsATable() throws {
        #expect(
            try Explain.text("pods.spec.containers[].ports") == """
                KIND:    Pod
                VERSION: v1
                FIELD:   Pod.spec.containers.ports <list of ContainerPort>

                Ports it listens on: names for probes, and information.
                A port that the container listens on.

                FIELDS
                  containerPort <integer 1…65535> required
                      The port.
                  name <name>
                      For probes; unique in the pod.
                  protocol <TCP>
                      TCP.

                Kubernetes fields that are refused
                  hostIP, hostPort

                """)
    }

    @Test func explainSuggestsWhatWasMeant() {
        func failure(_ path: String) -> CoterieError? {
            do {
                _ = try Explain.text(path)
                return nil
            } catch {
                return error
            }
        }
        #expect(failure("podd")?.description == "explain: there is no kind \"podd\" (did you mean Pod?)")
        #expect(failure("pod.spec.container")?.hint == "did you mean containers?")
        #expect(
            failure("pod.spec.affinity")?.message
                == "explain: Pod.spec.affinity is a Kubernetes field that Coterie does not have")
        #expect(failure("pod.kind.x")?.message == "explain: Pod.kind is a Pod and has no fields")
        #expect(failure("")?.code == .notFound)
        #expect(failure("pod..")?.code == .notFound)
    }

    private static let known: [String: ValueKind] = [
        "nodes": .integer, "cluster": .string, "http": .string,
        "sandbox": .choice(["auto", "namespaces", "oci", "none"]), "join": .strings,
        "tag": .strings, "detach": .boolean, "wait": .duration, "limit": .size,
    ]

    @Test func configurationHasTheKindsOfItsFlags() throws {
        let text =
            "nodes: 5\ncluster: local\nhttp: off\nsandbox: auto\njoin: [a:1, b:2]\ntag: {disk: ssd, rack: 7}\n"
            + "detach: true\nwait: 5s\nlimit: 64KiB\n"
        let values = try ConfigurationFile.parse(file: "c", text: Array(text.utf8), known: ExampleTests.known)
        #expect(
            values == [
                "nodes": .integer(5), "cluster": .string("local"), "http": .string("off"), "sandbox": .string("auto"),
                "join": .strings(["a:1", "b:2"]),
                "tag": .strings(["disk=ssd", "rack=7"]), "detach": .boolean(true), "wait": .duration(.seconds(5)),
                "limit": .size(65_536),
            ])
        #expect(try ConfigurationFile.parse(file: "c", text: [], known: ExampleTests.known).isEmpty)
        #expect(
            try ConfigurationFile.parse(file: "c", text: Array("join: a:1".utf8), known: ExampleTests.known) == [
                "join": .strings(["a:1"])
            ])
    }

    @Test func configurationErrorsHaveAPlace() {
        let text =
            "nods: 5\n--cluster: a\nsandbox: atuo\nwait: 5\ndetach: yes\nlimit:\nnodes: [1]\ncluster: x\ncluster: y\njoin: [{}]\n"
        do {
            _ = try ConfigurationFile.parse(file: "c", text: Array(text.utf8), known: ExampleTests.known)
            Issue.record("not refused")
        } catch {
            #expect(
                error.errors.map(\.description) == [
                    "c:1:1: nods: unknown key (did you mean nodes?)",
                    "c:2:1: --cluster: unknown key (did you mean cluster?)",
                    "c:3:10: sandbox: expected one of auto, namespaces, oci, none, found \"atuo\" (did you mean auto?)",
                    "c:4:7: wait: expected a duration like 250ms or 3s, found the number 5",
                    "c:5:9: detach: expected true or false, found the bare word yes",
                    "c:6:7: limit: has no value (a size like 64KiB is expected)",
                    "c:7:8: nodes: expected an integer, found a list",
                    "c:9:1: cluster: duplicate key (first given in line 8)",
                    "c:10:8: join[0]: expected a text, a list of texts, or a mapping, found a mapping",
                ])
        }
    }
}
