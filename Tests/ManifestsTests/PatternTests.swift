import Model
import Testing

@testable import Manifests

@Suite("Patterns")
struct PatternTests {
    private func expand(_ text: String) throws -> [ExpandedPod] {
        try Expansion.pods(of: ManifestParser.parse(file: "f", text: Array(text.utf8)))
    }

    private func pattern(_ kind: String, _ spec: String) -> String {
        "apiVersion: coterie.internal/v1alpha1\nkind: \(kind)\nmetadata: {name: q}\nspec:\n\(indented(spec, 2))\n"
    }

    @Test func leaderElectionAddsAnElectorToEachReplica() throws {
        let pods = try expand(
            pattern(
                "LeaderElection",
                "replicas: 2\nttl: 5s\ntemplate:\n  metadata: {labels: {a: b}}\n  spec: {initContainers: "
                    + "[{name: i, image: x}], containers: [{name: c, image: x}]}"
            ))
        #expect(pods.map(\.spec.name) == ["q-0", "q-1"])
        #expect(
            pods.allSatisfy { $0.ownerKind == "LeaderElection" && $0.ownerName == "q" && $0.spec.labels == ["a": "b"] })
        let first = try #require(pods.first?.spec)
        #expect(first.initContainers.map(\.name) == ["elector", "i"])
        #expect(first.initContainers.first?.restartAlways == true)
        #expect(
            first.initContainers.first?.command == [
                "coterie", "elector", "--election", "q", "--listen", "127.0.0.1:4040", "--ttl", "5s",
            ])
    }

    @Test func leaderElectionRefusesWhatWouldClash() {
        #expect(
            errors(
                pattern(
                    "LeaderElection",
                    "replicas: 0\nttl: 1ms\ntemplate:\n  spec: {restartPolicy: Never, containers: [{name: elector, image: x}]}"
                )) == [
                    "f:5:13: spec.replicas: expected an integer from 1 to 1000, found the number 0",
                    "f:6:8: spec.ttl: expected a duration from 500ms to 1h, found \"1ms\" (like 250ms, 3s or 5m)",
                    "f:8:27: spec.template.spec.restartPolicy: must be Always in a LeaderElection",
                    "f:8:54: spec.template.spec.containers[0].name: the name elector is that of the sidecar that the pattern adds",
                ])
    }

    @Test func workQueueWrapsTheProgram() throws {
        let pods = try expand(
            pattern(
                "WorkQueue",
                "tube: jobs\nworkers: 2\nconcurrency: 4\nimage: box\ncommand: [/bin/do]\nargs: [it]\nenv: [{name: A, value: b}]"
            ))
        #expect(pods.map(\.spec.name) == ["q-0", "q-1"])
        let worker = try #require(pods.first?.spec.containers.first)
        #expect(
            worker.command == [
                "coterie", "worker", "--tube", "jobs", "--concurrency", "4", "--", "/bin/do", "it",
            ])
        #expect(worker.arguments.isEmpty)
        #expect(worker.environment == [EnvironmentVariable(name: "A", value: .literal("b"))])
    }

    @Test func workQueueTakesAWholeTemplate() throws {
        let pods = try expand(
            pattern(
                "WorkQueue",
                "template:\n  spec: {containers: [{name: other, image: x}, {name: worker, image: x, command: [w]}]}"))
        #expect(
            pods.first?.spec.containers.last?.command == [
                "coterie", "worker", "--tube", "q", "--concurrency", "1", "--", "w",
            ])
        #expect(pods.first?.spec.containers.first?.command == [])
    }

    @Test func workQueueErrorsPointAtTheFieldsGiven() {
        #expect(
            errors(pattern("WorkQueue", "image: localhost/host\nvolumeMounts: [{name: v, mountPath: /x}]")) == [
                "f:5:3: spec.command: required field is missing (or give template)",
                "f:6:25: spec.volumeMounts[0].name: the pod has no volume named v",
            ])
        #expect(
            errors(
                pattern(
                    "WorkQueue", "queue: a\ntube: a\nimage: b\ntemplate:\n  spec: {containers: [{name: w, image: x}]}"))
                == [
                    "f:6:9: spec.tube: queue and tube mean the same: give one",
                    "f:7:10: spec.image: not together with template (put it into spec.template.spec)",
                    "f:9:24: spec.template.spec.containers: no container is named worker (its command is the "
                        + "program that runs once for each item)",
                ])
    }

    @Test func scatterGatherBecomesRootAndLeaves() throws {
        let text = pattern(
            "ScatterGather",
            "leaf: wc -l\nmerge: sort\nlines: 10\nparallel: 2\nshardTimeout: 5s\ndeadline: 1m\nhedge: off\n"
                + "minSuccess: 0.9\non: {disk: ssd}\nfiles: {lib/a.awk: x}\ninput: abc"
        )
        let pods = try expand(text)
        #expect(pods.map(\.spec.name) == ["gather-q-root", "gather-q-leaf-0", "gather-q-leaf-1"])
        let root = try #require(pods.first?.spec)
        let leaf = try #require(pods.last?.spec)
        #expect(root.restartPolicy == .never && leaf.restartPolicy == .onFailure)
        #expect(
            root.containers.first?.command == [
                "coterie", "root", "--gather", "q", "--leaf", "wc -l", "--merge", "sort", "--lines", "10", "--parallel",
                "2", "--shard-timeout",
                "5s", "--deadline", "1m", "--retries", "3", "--hedge", "off", "--min-success", "0.9", "--input",
                "/var/coterie/input/input",
            ])
        #expect(
            leaf.containers.first?.command == [
                "coterie", "leaf", "--gather", "q", "--root", "gather-q-root", "--leaf", "wc -l", "--shard-timeout",
                "5s", "--files",
                "/var/coterie/files",
            ])
        #expect(leaf.nodeSelector == ["disk": "ssd"] && root.nodeSelector.isEmpty)
        #expect(leaf.volumes.first?.source == .files(["lib/a.awk": Array("x".utf8)]))
    }

    @Test func thereAreNoMoreLeavesThanShards() {
        let spec = ScatterGatherSpec(name: "n", leaf: "true", sharder: .index(2), parallel: 5)
        #expect(Expansion.gather(spec, id: "7").leaves.map(\.name) == ["gather-7-leaf-0", "gather-7-leaf-1"])
    }

    @Test func scatterGatherNeedsExactlyOneSharder() {
        #expect(
            errors(pattern("ScatterGather", "leaf: x")) == [
                "f:5:3: spec: no sharder is given (exactly one of lines, shards, bytes, index, args)"
            ])
        #expect(
            errors(pattern("ScatterGather", "leaf: x\nlines: 1\nargs: true")) == [
                "f:5:3: spec: more than one sharder is given: lines, args (exactly one of lines, shards, bytes, index, args)"
            ])
        #expect(
            errors(
                pattern(
                    "ScatterGather",
                    "leaf: \" \"\nmerge: z\nindex: 3\nunordered: true\ninput: z\nhedge: soon\nshardTimeout: 2m\ndeadline: 1m"
                )) == [
                    "f:5:9: spec.leaf: the command is empty",
                    "f:8:14: spec.unordered: not together with merge, which gets results in shard order",
                    "f:9:10: spec.input: the sharder index has no input",
                    "f:10:10: spec.hedge: expected auto, off or a duration, found \"soon\" (like auto, off or 2s)",
                    "f:11:17: spec.shardTimeout: longer than deadline",
                ])
    }

    @Test func deploymentsAndJobsBecomeNumberedPods() throws {
        let job =
            "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec:\n  completions: 2\n  parallelism: 2\n  "
            + "completionMode: Indexed\n  activeDeadlineSeconds: 9\n  template: {spec: {restartPolicy: "
            + "Never, containers: [{name: c, image: i}]}}\n"
        let pods = try expand(job)
        #expect(pods.map(\.spec.name) == ["j-0", "j-1"])
        #expect(
            pods.last?.spec.containers.first?.environment == [
                EnvironmentVariable(name: "JOB_COMPLETION_INDEX", value: .literal("1"))
            ])
        #expect(pods.last?.spec.activeDeadline == .seconds(9))
        #expect(
            errors(job.replacing("parallelism: 2", with: "backoffLimit: 2").replacing("Never", with: "Always")) == [
                "f:5:16: spec.parallelism: must equal completions: Coterie starts all pods of a Job at once (a "
                    + "WorkQueue runs a few at a time)",
                "f:6:3: spec.backoffLimit: a Kubernetes field that Coterie does not have",
                "f:9:36: spec.template.spec.restartPolicy: must be OnFailure or Never in a Job",
            ])
        let deployment =
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  selector: {matchLabels: {a: "
            + "x}}\n  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}\n"
        #expect(
            errors(deployment) == [
                "f:5:31: spec.selector.matchLabels.a: the template's pods do not have this label (add it to "
                    + "spec.template.metadata.labels)"
            ])
        #expect(try expand(deployment.replacing("a: x", with: "a: b")).map(\.spec.name) == ["d-0"])
    }

    @Test func handMadeObjectsWithOnePodNameAreRefused() {
        let pod = PodSpec(name: "p", containers: [])
        #expect(throws: ManifestFailure.self) { try Expansion.pods(of: [.pod(pod), .pod(pod)]) }
    }
}
