import Foundation
import Histories
import Testing

@Suite struct FormatTests {
    static let folder = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath().deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent().appendingPathComponent("testdata/histories")

    static func fixture(_ name: String) throws -> History {
        try History(parsing: [UInt8](Data(contentsOf: folder.appendingPathComponent(name))))
    }

    /// Every call, answer and end there is.
    static var everything: History {
        var recorder = HistoryRecorder()
        var time: Int64 = 1_000
        func once(_ call: HistoryCall, _ answer: HistoryAnswer) {
            let id = recorder.invoke(client: 3, call, at: time)
            recorder.answer(id, answer, at: time + 10)
            time += 20
        }
        once(.register(key: "r", .write(4)), .register(.done))
        once(.register(key: "r", .read), .register(.value(4)))
        once(.register(key: "r", .compareAndSet(from: 4, to: 5)), .register(.done))
        once(.register(key: "r", .compareAndSet(from: 4, to: 5)), .register(.mismatch))
        once(.register(key: "s", .read), .register(.value(nil)))
        once(.text(key: "t", .put("x \"0\"\n\\ y")), .text(.done))
        once(.text(key: "t", .append("z")), .text(.done))
        once(.text(key: "t", .get), .text(.text("x \"0\"\n\\ yz")))
        once(.lease(key: "e", .acquire(holder: "c1.2", ttlMilliseconds: 1)), .lease(.granted(token: 9)))
        once(.lease(key: "e", .acquire(holder: "c2.2", ttlMilliseconds: 1)), .lease(.held(token: 9, holder: "c1.2")))
        once(.lease(key: "e", .renew(token: 9, ttlMilliseconds: 1)), .lease(.renewed))
        once(.lease(key: "e", .inspect), .lease(.state(token: 9, holder: "c1.2")))
        once(.lease(key: "e", .release(token: 9)), .lease(.released))
        once(.lease(key: "e", .release(token: 9)), .lease(.lost(newest: 9)))
        once(.lease(key: "e", .inspect), .lease(.state(token: 9, holder: nil)))
        let puts = [
            HistoryCall.Put(job: 11, delayMilliseconds: 0, ttrMilliseconds: 1),
            HistoryCall.Put(job: 12, delayMilliseconds: 0, ttrMilliseconds: 1),
        ]
        once(.jobs(.put(puts)), .jobs(.inserted([1, 2])))
        once(
            .jobs(.reserve(tubes: ["a", "b"], count: 2)),
            .jobs(.reserved([.init(job: 11, id: 1, lease: 1), .init(job: 12, id: 2, lease: 2)])))
        once(.jobs(.touch(job: 11, lease: 1)), .jobs(.plain(.done)))
        once(.jobs(.release(job: 11, lease: 1, delayMilliseconds: 0)), .jobs(.plain(.buried)))
        once(.jobs(.delete(job: 12, lease: 2)), .jobs(.plain(.done)))
        once(.jobs(.delete(job: 12, lease: 2)), .jobs(.plain(.notFound)))
        once(.jobs(.look(job: 12)), .jobs(.plain(.notFound)))
        once(.jobs(.touch(job: 11, lease: 1)), .jobs(.plain(.leaseExpired)))
        recorder.refuse(recorder.invoke(client: 1, .register(key: "r", .write(6)), at: time), at: time + 1)
        recorder.giveUp(recorder.invoke(client: 1, .register(key: "r", .write(7)), at: time + 2), at: time + 3)
        _ = recorder.invoke(client: 2, .jobs(.reserve(tubes: [], count: 1)), at: time + 4)
        return recorder.history
    }

    @Test func whatIsWrittenIsReadAgain() throws {
        let history = FormatTests.everything
        #expect(history.check().isLinearizable, "\(history.check())")
        #expect(try History(parsing: Array(history.text(.jepsen).utf8)) == history)
        let untimed = try History(parsing: Array(history.text(.porcupine).utf8))
        #expect(!untimed.isTimed)
        #expect(untimed.operations.map(\.call) == history.operations.map(\.call))
        #expect(untimed.check().isLinearizable, "\(untimed.check())")
        #expect(untimed.text(.porcupine) == history.text(.porcupine))
    }

    @Test func theLinesAreThoseOfTheOtherTools() {
        var recorder = HistoryRecorder()
        let a = recorder.invoke(client: 0, .text(key: "0", .append("x 0 0 y")), at: 5)
        let b = recorder.invoke(client: 1, .register(key: "k", .compareAndSet(from: 1, to: 2)), at: 6)
        recorder.answer(a, .text(.done), at: 7)
        recorder.giveUp(b, at: 8)
        let c = recorder.invoke(client: 1, .text(key: "0", .get), at: 9)
        recorder.answer(c, .text(.text("x 0 0 y")), at: 10)
        #expect(
            recorder.history.text(.porcupine) == """
                {:process 0, :type :invoke, :f :append, :key "0", :value "x 0 0 y"}
                {:process 1, :type :invoke, :f :cas, :key "k", :value [1 2]}
                {:process 0, :type :ok, :f :append, :key "0", :value "x 0 0 y"}
                {:process 1, :type :info, :f :cas, :key "k", :value [1 2]}
                {:process 0, :type :invoke, :f :get, :key "0", :value nil}
                {:process 0, :type :ok, :f :get, :key "0", :value "x 0 0 y"}

                """)
        #expect(
            recorder.history.text(.jepsen).hasPrefix(
                """
                {:index 0, :type :invoke, :process 0, :f :append, :value ["0" "x 0 0 y"], :time 5, :client 0}
                {:index 1, :type :invoke, :process 1, :f :cas, :value ["k" [1 2]], :time 6, :client 1}

                """))
    }

    /// A process whose operation ended in nobody knows what does nothing more, and no process does two things at once.
    @Test func processesAreNumberedAsJepsenWantsThem() throws {
        var recorder = HistoryRecorder()
        for i in 0..<50 {
            let id = recorder.invoke(client: 0, .register(key: "r", .write(Int64(i))), at: Int64(i))
            if i % 3 == 0 {
                recorder.giveUp(id, at: Int64(i) + 9)
            } else {
                recorder.answer(id, .register(.done), at: Int64(i) + 9)
            }
        }
        var busy: Set<String> = []
        var dead: Set<String> = []
        for line in recorder.history.text(.porcupine).split(separator: "\n") {
            let process = String(line.split(separator: ",")[0])
            #expect(!dead.contains(process))
            if line.contains(":invoke") {
                #expect(busy.insert(process).inserted)
            } else {
                busy.remove(process)
                if line.contains(":info") { dead.insert(process) }
            }
        }
        #expect(dead.count == 17)
    }

    @Test(arguments: ["register-log", "texts", "leases", "jobs"])
    func knownHistoriesAreJudgedAsTheyShould(name: String) throws {
        let extensionOf = ["register-log": "log"][name] ?? "edn"
        let good = try FormatTests.fixture("\(name)-good.\(extensionOf)")
        #expect(good.operations.count > 4)
        #expect(good.check().isLinearizable, "\(good.check())")
        let bad = try FormatTests.fixture("\(name)-bad.\(extensionOf)")
        #expect(bad.check().violations.count == 1, "\(bad.check())")
    }

    @Test func idsAndNumbersOfJobsBelongTogether() {
        var history = FormatTests.everything
        let id = history.operations.firstIndex { if case .jobs(.reserve) = $0.call { true } else { false } }
        history.operations[id ?? 0].end = .answered(
            .jobs(.reserved([.init(job: 11, id: 2, lease: 1)])), at: history.operations[id ?? 0].invoked + 1)
        #expect(history.check().violations.contains { $0.contains("ids") })
    }

    @Test(arguments: [
        "{:process 0, :type :invoke, :f :read", "{:process 0, :type :ok, :f :read, :key \"\", :value 1}",
        "{:process 0, :type :invoke, :f :fly, :key \"\", :value 1}", "{:type :invoke, :f :read}",
        "{:process 0, :type :invoke, :f :cas, :key \"\", :value [1]}",
        "{:process 0, :type :invoke, :f :put, :key \"k\", :value \"a\\q\"}",
        "{:process 0, :type :invoke, :f :read, :key \"\", :value nil}\n{:process 0, :type :invoke, :f :read, :key \"\", :value nil}",
    ])
    func whatIsNoHistoryIsRefusedWithItsLine(text: String) {
        #expect(throws: HistoryFormatError.self) { try History(parsing: Array(text.utf8)) }
        #expect(throws: HistoryFormatError.self) {
            try History(parsing: Array((String(repeating: "{:a ", count: 100_000)).utf8))
        }
    }
}
