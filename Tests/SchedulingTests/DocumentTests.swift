import Model
import Scheduling
import Testing
import Wire

@Suite struct DocumentTests {
    typealias Fixture = SchedulingFixture

    private func names(_ id: NodeID) -> (name: String, hostIP: String)? {
        id == Fixture.node(1) ? ("n1", "10.0.0.1") : nil
    }

    private func condition(_ document: JSONValue, _ type: String) -> JSONValue? {
        document["status"]?["conditions"]?.arrayValue?.first { $0["type"]?.stringValue == type }
    }

    @Test func aRunningPodIsDescribedAsKubernetesDoes() throws {
        var record = PodRecord(
            spec: Fixture.spec("web"), uid: 42, node: Fixture.node(1), owner: .pattern(kind: "WorkQueue", name: "q"))
        record.spec.labels = ["app": "web"]
        record.status = PodStatus(
            phase: .running,
            containers: [
                ContainerStatus(name: "setup", state: .terminated(exitCode: 0, reason: "Completed"), isInit: true),
                ContainerStatus(name: "main", state: .running, ready: true, restartCount: 2),
            ], sandbox: "namespaces")
        record.statusNode = Fixture.node(1)
        let document = SchedulingMachine().podDocument(record, node: names)
        #expect(document["kind"] == "Pod")
        #expect(document["metadata"]?["name"] == "web")
        #expect(document["metadata"]?["uid"] == "42")
        #expect(document["metadata"]?["labels"]?["app"] == "web")
        #expect(document["metadata"]?["ownerReferences"]?.arrayValue?.first?["kind"] == "WorkQueue")
        #expect(document["spec"]?["nodeName"] == "n1")
        #expect(document["spec"]?["terminationGracePeriodSeconds"] == 30)
        #expect(document["status"]?["phase"] == "Running")
        #expect(document["status"]?["hostIP"] == "10.0.0.1")
        #expect(document["status"]?["podIP"] == "127.0.0.1")
        #expect(condition(document, "Ready")?["status"] == "True")
        #expect(
            document["status"]?["containerStatuses"]?.text()
                == #"[{"name":"main","image":"localhost/host","state":{"running":{}},"ready":true,"restartCount":2}]"#)
        #expect(document["status"]?["initContainerStatuses"]?.arrayValue?.count == 1)
        record.spec.hostNetwork = true
        #expect(SchedulingMachine().podDocument(record, node: names)["status"]?["podIP"] == "10.0.0.1")
    }

    @Test func aPendingPodTellsWhy() {
        var record = PodRecord(spec: Fixture.spec("web"), uid: 1)
        record.pendingReasons = ["0 of 1 nodes can take it", "node n1 is cordoned"]
        let document = SchedulingMachine().podDocument(record, node: names)
        #expect(document["status"]?["message"] == "0 of 1 nodes can take it; node n1 is cordoned")
        #expect(condition(document, "PodScheduled")?["status"] == "False")
        #expect(condition(document, "PodScheduled")?["reason"] == "Unschedulable")
        #expect(condition(document, "Ready")?["status"] == "False")
        #expect(document["spec"]?["nodeName"] == nil)
    }

    @Test func aCompletedPodIsNotReadyBecauseItIsDone() {
        var record = PodRecord(spec: Fixture.spec("job"), uid: 1, node: Fixture.node(1))
        record.status = PodStatus(
            phase: .succeeded,
            containers: [ContainerStatus(name: "main", state: .terminated(exitCode: 0, reason: "Completed"))])
        let document = SchedulingMachine().podDocument(record, node: names)
        #expect(condition(document, "Ready")?["reason"] == "PodCompleted")
        #expect(condition(document, "Initialized")?["status"] == "True")
    }

    @Test func contentsOfFilesAreNotShown() {
        var spec = Fixture.spec("web")
        spec.volumes = [
            Volume(name: "secret", source: .files(["password": Array("hunter2".utf8)])),
            Volume(name: "h", source: .hostPath("/x", type: nil)),
            Volume(name: "e", source: .emptyDir(inMemory: true, sizeLimit: 5)),
        ]
        let text = SchedulingMachine.specDocument(spec, nodeName: nil).text()
        #expect(text.contains(#"{"name":"secret","configMap":{"items":[{"key":"password","path":"password"}]}}"#))
        #expect(
            text.contains(
                #"{"name":"h","hostPath":{"path":"/x"}},{"name":"e","emptyDir":{"medium":"Memory","sizeLimit":"5"}}"#))
        #expect(!text.contains("hunter2"))
    }

    @Test func listsAreSortedByName() {
        var world = Fixture()
        for name in ["b", "a", "c"] { world.create(name) }
        let list = world.machine.podListDocument(node: names)
        #expect(list["kind"] == "PodList")
        #expect(list["items"]?.arrayValue?.compactMap { $0["metadata"]?["name"]?.stringValue } == ["a", "b", "c"])
    }

    @Test func aGathersDocumentIsThatOfTheContractAndMore() throws {
        var world = Fixture()
        world.apply(
            .createGather(
                GatherSeed(id: "g", leaf: "wc", sharder: "lines 5", parallel: 3), pods: [Fixture.spec("g-root")]))
        let gather = try #require(world.machine.gather("g"))
        let document = world.machine.gatherDocument(gather)
        #expect(
            document.objectValue?.prefix(9).map(\.key) == [
                "id", "state", "shards", "retried", "hedged", "milliseconds", "bytesIn", "bytesOut", "failures",
            ])
        #expect(document["leaf"] == "wc")
        #expect(document["merge"] == .null)
        #expect(document["pods"]?.text() == #"["g-root"]"#)
        #expect(world.machine.gatherListDocument["gathers"]?.arrayValue?.count == 1)
    }
}
