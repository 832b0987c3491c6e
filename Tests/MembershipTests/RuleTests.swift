import Model
import Testing

@testable import Membership

/// One node, hand-made datagrams: each rule of the protocol on its own.
@Suite struct RuleTests {
    struct Bench {
        var core: Membership
        var now = MonotonicTime.zero
        var effects: [Membership.Effect] = []

        init(options: MembershipOptions = .init(), incarnation: UInt64 = 1 << 20) {
            core = Membership(
                options: options, id: NodeID(high: 100, low: 1), name: "me", address: Bench.address(100),
                cluster: "test",
                incarnation: incarnation, generator: SeededGenerator(seed: 7), now: .zero)
        }

        static func address(_ short: UInt64) -> SocketAddress {
            SocketAddress(host: .v4(0x0A00_0000 + UInt32(short)), port: 7630)
        }

        static func alive(_ short: UInt64, _ incarnation: UInt64 = 1, tags: [String: String] = [:]) -> Record {
            .alive(
                AliveRecord(
                    Member(
                        id: NodeID(high: short, low: 1), name: "m\(short)", address: address(short),
                        incarnation: incarnation,
                        tags: tags)))
        }

        mutating func feed(_ input: Membership.Input) {
            core.handle(input, now: now)
            effects += core.takeEffects()
        }

        mutating func receive(
            _ body: Datagram.Body = .gossip, from: UInt64, to: UInt64 = 100, _ records: [Record] = [],
            cluster: String = "test",
            digest: UInt64? = nil
        ) {
            let datagram = Datagram(
                cluster: clusterHash(cluster), from: from, to: to, digest: digest ?? core.digest, health: 0, body: body,
                records: records)
            feed(.datagram(Codec.encode(datagram)[...], from: Bench.address(from)))
        }

        /// Fires every timer up to `span` from now, on time.
        mutating func advance(_ span: TimeSpan) {
            let end = now + span
            while core.nextDeadline <= end {
                now = max(now, core.nextDeadline)
                feed(.timer)
            }
            now = end
        }

        mutating func take() -> [Membership.Effect] {
            defer { effects = [] }
            return effects
        }

        /// The datagrams since the last call, decoded, with the short id of the receiver's address.
        mutating func sent() throws -> [(to: UInt64, Datagram)] {
            try take().compactMap { effect in
                guard case .datagram(let bytes, let address) = effect, case .v4(let host) = address.host else {
                    return nil
                }
                return (UInt64(host & 0xFF_FFFF), try Codec.decode(bytes[...]))
            }
        }

        mutating func kinds() -> [MemberEvent.Kind] {
            take().compactMap { if case .event(let event) = $0 { event.kind } else { nil } }
        }

        func state(_ short: UInt64) -> MemberState? { core.member(NodeID(high: short, low: 1))?.state }
    }

    /// A bench that knows members 1…n and has told its news.
    private func bench(knowing count: UInt64, options: MembershipOptions = .init()) -> Bench {
        var bench = Bench(options: options)
        for short in 1...count { bench.receive(from: short, [Bench.alive(short)]) }
        bench.effects = []
        return bench
    }

    @Test func aSeedIsPingedByAddressAndTriedForEver() throws {
        var bench = Bench()
        bench.feed(.join([Bench.address(1)]))
        let first = try bench.sent()
        #expect(first.count == 1 && first[0].to == 1 && first[0].1.to == 0)
        #expect(first[0].1.records.contains { $0.subject == 100 }, "says who it is")
        bench.advance(.seconds(60))
        let more = try bench.sent().filter { $0.1.to == 0 }
        #expect(more.count >= 12 && more.count <= 25)
    }

    @Test func anAnsweringSeedGivesItsIdAndTheWholeViewIsAskedFor() throws {
        var bench = Bench()
        bench.feed(.join([Bench.address(1)]))
        guard case .ping(let sequence)? = try bench.sent().first?.1.body else { Issue.record("no ping"); return }
        bench.receive(.ack(sequence: sequence), from: 1, [Bench.alive(1)])
        #expect(bench.state(1) == .alive)
        let sent = try bench.sent()
        #expect(sent.contains { if case .summary = $0.1.body { $0.to == 1 } else { false } })
    }

    @Test func aPingIsAckedToWhereItCameFrom() throws {
        var bench = bench(knowing: 2)
        bench.receive(.ping(sequence: 9), from: 2)
        let sent = try bench.sent()
        #expect(sent.contains { $0.to == 2 && $0.1.body == .ack(sequence: 9) && $0.1.to == 2 })
    }

    @Test func aPingForAnotherIdIsAnsweredByWhoIsHere() throws {
        var bench = bench(knowing: 2)
        bench.receive(.ping(sequence: 9), from: 2, to: 77)
        let sent = try bench.sent()
        #expect(sent.first?.1.body == .otherProcess(sequence: 9, asked: 77))
        #expect(sent.first?.1.records.contains { $0.subject == 100 } == true)
    }

    @Test func anotherClustersDatagramsAreIgnoredAndCounted() {
        var bench = Bench()
        bench.receive(from: 1, [Bench.alive(1)], cluster: "other")
        #expect(bench.core.members.count == 1 && bench.core.counters.otherCluster == 1)
        #expect(!bench.effects.contains { if case .datagram = $0 { true } else { false } })
    }

    @Test func anAccusedNodeRefutesWithAHigherIncarnation() throws {
        var bench = bench(knowing: 2)
        bench.receive(from: 1, [.suspect(subject: 100, incarnation: 1 << 20, accuser: 2, evidence: .silence)])
        #expect(bench.core.local.incarnation == 1 << 20 + 1)
        #expect(bench.core.healthScore == 1)
        bench.advance(.milliseconds(300))
        let records = try bench.sent().flatMap(\.1.records)
        #expect(
            records.contains {
                if case .alive(let alive) = $0 {
                    alive.id.short == 100 && alive.incarnation == 1 << 20 + 1
                } else {
                    false
                }
            })
    }

    @Test func aStaleAccusationIsNotAnswered() {
        var bench = bench(knowing: 2)
        bench.receive(from: 1, [.dead(subject: 100, incarnation: 5, accuser: 2, evidence: .silence)])
        #expect(bench.core.local.incarnation == 1 << 20)
    }

    @Test func anEarlierLifesRecordRaisesTheIncarnationAboveIt() {
        var bench = bench(knowing: 1)
        let old = Member(id: NodeID(high: 100, low: 1), name: "me", address: Bench.address(100), incarnation: 9 << 20)
        bench.receive(from: 1, [.alive(AliveRecord(old))])
        #expect(bench.core.local.incarnation == 9 << 20 + 1)
    }

    @Test func anIncarnationFarAheadIsRefused() {
        var bench = bench(knowing: 2)
        bench.receive(from: 1, [.dead(subject: 100, incarnation: 1 << 50, accuser: 1, evidence: .silence)])
        bench.receive(from: 1, [Bench.alive(2, 1 << 50)])
        bench.receive(from: 1, [.dead(subject: 2, incarnation: .max, accuser: 1, evidence: .silence)])
        #expect(bench.core.local.incarnation == 1 << 20)
        #expect(bench.state(2) == .alive)
        #expect(bench.core.counters.incarnationsRefused == 3)
    }

    @Test func suspicionIsRefutedOnlyByAHigherIncarnation() {
        var bench = bench(knowing: 3)
        bench.receive(from: 1, [.suspect(subject: 2, incarnation: 1, accuser: 1, evidence: .silence)])
        #expect(bench.state(2) == .suspect && bench.kinds() == [.suspect])
        bench.receive(from: 3, [Bench.alive(2, 1)])
        #expect(bench.state(2) == .suspect)
        bench.receive(from: 3, [Bench.alive(2, 2)])
        #expect(bench.state(2) == .alive && bench.kinds() == [.alive])
    }

    @Test func distinctAccusersShortenTheSuspicionAndEqualOnesDoNot() {
        var options = MembershipOptions()
        options.probeInterval = .seconds(1_000)
        var slow = bench(knowing: 6, options: options)
        slow.receive(from: 1, [.suspect(subject: 2, incarnation: 1, accuser: 1, evidence: .silence)])
        slow.receive(from: 3, [.suspect(subject: 2, incarnation: 1, accuser: 1, evidence: .silence)])
        slow.advance(.seconds(14))
        #expect(slow.state(2) == .suspect)
        slow.advance(.seconds(2))
        #expect(slow.state(2) == .dead)
        var quick = bench(knowing: 6, options: options)
        for accuser in [UInt64(1), 3, 4] {
            quick.receive(from: accuser, [.suspect(subject: 2, incarnation: 1, accuser: accuser, evidence: .silence)])
        }
        quick.advance(.milliseconds(2_400))
        #expect(quick.state(2) == .suspect)
        quick.advance(.milliseconds(200))
        #expect(quick.state(2) == .dead)
    }

    @Test func theSuspectIsToldFirst() throws {
        var bench = bench(knowing: 3)
        bench.receive(from: 1, [.suspect(subject: 2, incarnation: 1, accuser: 1, evidence: .silence)])
        bench.effects = []
        bench.receive(.ping(sequence: 5), from: 2)
        let ack = try bench.sent().first { $0.to == 2 }
        #expect(ack?.1.records.first == .suspect(subject: 2, incarnation: 1, accuser: 100, evidence: .silence))
    }

    @Test func aSilentMemberIsProbedDirectlyThenThroughThreeThenSuspected() throws {
        var bench = bench(knowing: 5)
        bench.advance(.milliseconds(2_100))
        let sent = try bench.sent()
        let pings = sent.filter { if case .ping = $0.1.body { true } else { false } }
        let target = try #require(pings.first?.to)
        let asked = sent.filter { if case .indirectPing(_, target, _) = $0.1.body { true } else { false } }
        #expect(Set(asked.map(\.to)).count == 3 && !asked.map(\.to).contains(target))
        #expect(bench.state(target) == .suspect)
        #expect(bench.core.healthScore > 0, "no nack came: this node may be the deaf one")
    }

    @Test func nacksKeepTheHealthScore() throws {
        var bench = bench(knowing: 5)
        var asked = Set<UInt64>()
        for _ in 0..<2_100 {
            bench.advance(.milliseconds(1))
            for (to, datagram) in try bench.sent() {
                if case .indirectPing(let sequence, let target, _) = datagram.body, asked.insert(to).inserted {
                    bench.receive(.nack(sequence: sequence, target: target), from: to)
                }
            }
            if bench.core.counters.probesFailed > 0 { break }
        }
        #expect(bench.core.counters.probesFailed == 1 && asked.count == 3)
        #expect(bench.core.healthScore == 0)
    }

    @Test func aHelperPingsAndRelaysOrNacksOrReportsRefusal() throws {
        var bench = bench(knowing: 3)
        func ask() throws -> UInt64 {
            bench.receive(.indirectPing(sequence: 50, target: 2, address: Bench.address(2)), from: 1)
            let ping = try #require(try bench.sent().last { if case .ping = $0.1.body { $0.to == 2 } else { false } })
            guard case .ping(let sequence) = ping.1.body else { return 0 }
            return sequence
        }
        let sequence = try ask()
        bench.receive(.ack(sequence: sequence), from: 2)
        #expect(try bench.sent().contains { $0.to == 1 && $0.1.body == .relayedAck(sequence: 50, target: 2) })
        _ = try ask()
        bench.feed(.refused(Bench.address(2)))
        #expect(try bench.sent().contains { $0.to == 1 && $0.1.body == .refusal(sequence: 50, target: 2) })
        _ = try ask()
        bench.advance(.milliseconds(410))
        #expect(try bench.sent().contains { $0.to == 1 && $0.1.body == .nack(sequence: 50, target: 2) })
    }

    /// Answers every ping to `short` with a refusal for the given time.
    private func refuse(_ bench: inout Bench, _ short: UInt64, for span: TimeSpan) throws {
        let end = bench.now + span
        while bench.now < end {
            for (to, datagram) in try bench.sent() where to == short {
                if case .ping = datagram.body { bench.feed(.refused(Bench.address(short))) }
            }
            bench.advance(.milliseconds(1))
        }
    }

    @Test func refusalsSeenTwiceAreDeathWithoutTheWait() throws {
        var bench = bench(knowing: 4)
        bench.feed(.refused(Bench.address(2)))
        #expect(bench.state(2) == .alive, "one refusal is a doubt")
        try refuse(&bench, 2, for: .milliseconds(450))
        #expect(bench.state(2) == .dead)
    }

    @Test func oneRefusalAloneIsNoDeath() {
        var bench = bench(knowing: 4)
        bench.feed(.refused(Bench.address(2)))
        bench.feed(.refused(Bench.address(2)))
        bench.advance(.milliseconds(450))
        #expect(bench.state(2) != .dead)
    }

    @Test func anAnswerToTheCheckClearsTheProof() throws {
        var bench = bench(knowing: 4)
        bench.feed(.processDied(NodeID(high: 2, low: 1)))
        bench.advance(.milliseconds(110))
        let check = try #require(try bench.sent().first { if case .ping = $0.1.body { $0.to == 2 } else { false } })
        guard case .ping(let sequence) = check.1.body else { return }
        bench.receive(.ack(sequence: sequence), from: 2)
        bench.advance(.milliseconds(400))
        #expect(bench.state(2) == .alive)
    }

    @Test func aBrokenAndRefusedStreamIsDeathInShortTime() {
        var bench = bench(knowing: 4)
        bench.feed(.processDied(NodeID(high: 2, low: 1)))
        bench.advance(.milliseconds(420))
        #expect(bench.state(2) == .dead)
    }

    @Test func aRefusalFromAnAddressThatTheMemberHasLeftIsNoEvidence() {
        var bench = bench(knowing: 4)
        let moved = Member(id: NodeID(high: 2, low: 1), name: "m2", address: Bench.address(9), incarnation: 2)
        bench.receive(from: 2, [.alive(AliveRecord(moved))])
        #expect(bench.kinds() == [.update])
        bench.feed(.refused(Bench.address(2)))
        #expect(bench.core.peer(2)?.proof == nil)
        bench.feed(.refused(Bench.address(9)))
        #expect(bench.core.peer(2)?.proof != nil)
    }

    @Test func anotherProcessAtTheAddressIsEvidence() throws {
        var bench = bench(knowing: 1)
        let end = MonotonicTime.zero + .milliseconds(2_500)
        while bench.now < end && bench.state(1) == .alive {
            for (to, datagram) in try bench.sent() where to == 1 {
                if case .ping(let sequence) = datagram.body, datagram.to == 1 {
                    let other = Member(
                        id: NodeID(high: 55, low: 1), name: "new", address: Bench.address(1), incarnation: 1)
                    bench.receive(.otherProcess(sequence: sequence, asked: 1), from: 55, [.alive(AliveRecord(other))])
                }
            }
            bench.advance(.milliseconds(1))
        }
        #expect(bench.state(1) == .dead && bench.state(55) == .alive)
    }

    @Test func leavingIsToldToManyAtOnceAndEnds() throws {
        var bench = bench(knowing: 8)
        bench.feed(.leave)
        let told = try bench.sent().filter { $0.1.records.contains(.left(subject: 100, incarnation: 1 << 20)) }
        #expect(Set(told.map(\.to)).count == 8)
        bench.advance(.milliseconds(1_000))
        #expect(bench.take().contains(.left))
        #expect(bench.core.local.state == .left && bench.core.nextDeadline == .distantFuture)
        bench.feed(.join([Bench.address(1)]))
        #expect(bench.core.local.state == .alive && bench.core.local.incarnation == 1 << 20 + 1)
        bench.advance(.milliseconds(100))
        #expect(try bench.sent().contains { $0.1.records.contains { $0.subject == 100 } }, "says that it is back")
    }

    @Test func aLeavingNodeDoesNotSpinOnOldSuspicions() {
        var bench = bench(knowing: 4)
        bench.receive(from: 1, [.suspect(subject: 2, incarnation: 1, accuser: 1, evidence: .silence)])
        bench.advance(.milliseconds(2_200))
        bench.feed(.leave)
        var turns = 0
        while bench.core.local.state == .left && bench.core.nextDeadline != .distantFuture && turns < 1_000 {
            bench.now = max(bench.now, bench.core.nextDeadline)
            bench.feed(.timer)
            turns += 1
        }
        #expect(turns < 50)
    }

    @Test func whoMissedTheRefutationIsToldAgain() throws {
        var bench = bench(knowing: 2)
        bench.receive(from: 1, [.suspect(subject: 100, incarnation: 1 << 20, accuser: 2, evidence: .silence)])
        bench.advance(.seconds(10))
        bench.effects = []
        bench.receive(
            .ping(sequence: 1), from: 2, [.suspect(subject: 100, incarnation: 1 << 20, accuser: 2, evidence: .silence)])
        #expect(
            try bench.sent().contains { $0.to == 2 && $0.1.records.contains { $0.subject == 100 } })
        #expect(bench.core.local.incarnation == 1 << 20 + 1)
    }

    @Test func leftIsNotDeadAndComesBackWithAHigherIncarnation() {
        var bench = bench(knowing: 3)
        bench.receive(from: 1, [.left(subject: 2, incarnation: 1)])
        #expect(bench.state(2) == .left && bench.kinds() == [.leave])
        bench.receive(from: 1, [Bench.alive(2, 1)])
        bench.receive(from: 1, [.dead(subject: 2, incarnation: 1, accuser: 1, evidence: .silence)])
        #expect(bench.state(2) == .left)
        bench.receive(from: 2, [Bench.alive(2, 2)])
        #expect(bench.state(2) == .alive && bench.kinds().contains(.join))
    }

    @Test func theDeadAreRetriedAndReapedAndDoNotComeBackByAnOldView() throws {
        var options = MembershipOptions()
        options.reapAfter = .seconds(30)
        var bench = bench(knowing: 2, options: options)
        bench.receive(from: 1, [.dead(subject: 2, incarnation: 1, accuser: 1, evidence: .silence)])
        bench.effects = []
        bench.advance(.seconds(10))
        #expect(try bench.sent().contains { if case .ping = $0.1.body { $0.to == 2 } else { false } })
        bench.advance(.seconds(25))
        #expect(bench.state(2) == nil)
        #expect(bench.take().contains { if case .event(let event) = $0 { event.kind == .reaped } else { false } })
        bench.receive(from: 1, [Bench.alive(2, 1)])
        #expect(bench.state(2) == nil)
        bench.receive(from: 1, [Bench.alive(2, 2)])
        #expect(bench.state(2) == .alive)
    }

    @Test func anUpdateIsPublishedWithAHigherIncarnationAndOneTooLargeIsRefused() throws {
        var bench = bench(knowing: 2)
        bench.feed(.update(tags: ["zone": "a"], meta: [1]))
        #expect(bench.core.local.incarnation == 1 << 20 + 1 && bench.core.local.tags == ["zone": "a"])
        var big: [String: String] = [:]
        for index in 0..<20 { big["key\(index)"] = String(repeating: "x", count: 100) }
        bench.feed(.update(tags: big, meta: []))
        #expect(bench.core.local.tags == ["zone": "a"] && bench.core.counters.updatesRefused == 1)
        var other = self.bench(knowing: 2)
        other.receive(from: 2, [Bench.alive(2, 2, tags: ["zone": "a"])])
        #expect(other.kinds() == [.update])
    }

    @Test func aStandingDifferenceOfViewsIsRepaired() throws {
        var bench = bench(knowing: 3)
        bench.advance(.seconds(5))
        bench.effects = []
        bench.receive(.ping(sequence: 1), from: 1, digest: 12_345)
        bench.advance(.milliseconds(450))
        bench.receive(.ping(sequence: 2), from: 1, digest: 12_345)
        let sent = try bench.sent()
        #expect(
            sent.contains {
                if case .summary(let entries) = $0.1.body { entries.count == 4 && $0.to == 1 } else { false }
            })
    }

    @Test func aSummaryIsAnsweredByWhatIsNewerHereAndWhatIsWanted() throws {
        var bench = bench(knowing: 3)
        bench.receive(from: 2, [Bench.alive(2, 5)])
        bench.effects = []
        let entries = [
            SummaryEntry(subject: 2, incarnation: 1, state: .alive),
            SummaryEntry(subject: 3, incarnation: 9, state: .alive),
            SummaryEntry(subject: 8, incarnation: 1, state: .alive),
            SummaryEntry(subject: 1, incarnation: 1, state: .alive),
            SummaryEntry(subject: 100, incarnation: 1 << 20, state: .alive),
        ]
        bench.receive(.summary(entries), from: 1)
        let delta = try #require(try bench.sent().first { $0.1.body == .delta && $0.to == 1 })
        #expect(delta.1.records == [.want(subject: 3), .want(subject: 8), Bench.alive(2, 5)])
    }

    @Test func aLargeViewGoesByPushPull() {
        var bench = bench(knowing: 250)
        bench.advance(.seconds(5))
        bench.effects = []
        bench.receive(.ping(sequence: 1), from: 1, digest: 1)
        bench.advance(.milliseconds(1_000))
        bench.receive(.ping(sequence: 2), from: 1, digest: 1)
        var payload: [UInt8] = []
        for case .pushPull(let bytes, let id, _) in bench.take() where id.high == 1 { payload = bytes }
        let decoded = try? Codec.decodePushPull(payload, recordLimit: 20_000)
        #expect(decoded?.isRequest == true && (decoded?.records.count ?? 0) >= 250)
        // And the other side takes it in, and answers
        var other = Bench()
        other.core = Membership(
            id: NodeID(high: 1, low: 1), name: "m1", address: Bench.address(1), cluster: "test", incarnation: 1,
            generator: SeededGenerator(seed: 3), now: .zero)
        other.feed(.pushPull(payload, from: NodeID(high: 100, low: 1)))
        #expect(other.core.members.count == 250)
        #expect(other.take().contains { if case .pushPull = $0 { true } else { false } })
    }

    @Test func aStoppedProcessAccusesNobodyOfItsOwnAbsence() {
        var bench = bench(knowing: 5)
        while bench.core.outstanding.isEmpty { bench.advance(.milliseconds(1)) }
        bench.advance(.milliseconds(600))
        #expect(bench.core.outstanding.count == 1)
        // Stopped in the middle of a probe for twenty seconds
        bench.now = bench.now + .seconds(20)
        bench.feed(.timer)
        #expect(bench.core.members.allSatisfy { $0.state == .alive })
        #expect(bench.core.counters.stalls == 1 && bench.core.healthScore > 0)
    }

    @Test func datagramsStayWithinTheirBudget() throws {
        var bench = Bench()
        for short in 1...200 {
            bench.receive(from: 1, [Bench.alive(UInt64(short) + 200, 1, tags: ["rack": "r\(short)"])])
        }
        bench.advance(.seconds(3))
        var largest = 0
        for case .datagram(let bytes, _) in bench.take() { largest = max(largest, bytes.count) }
        #expect(largest <= 1_363 && largest > 1_000)
    }

    @Test func aStatementIsToldALimitedNumberOfTimes() throws {
        var bench = bench(knowing: 10)
        bench.advance(.seconds(20))
        bench.effects = []
        #expect(bench.core.broadcasts.isEmpty || bench.core.broadcasts.count < 11)
        #expect(Membership.naturalLogarithmCeiling(1) == 0)
        #expect(Membership.naturalLogarithmCeiling(64) == 5)
        #expect(Membership.naturalLogarithmCeiling(1_000) == 7)
    }

    @Test func aMemberThatIsGoneIsForgottenOnDemandAndOldNewsDoNotBringItBack() {
        var bench = bench(knowing: 3)
        bench.feed(.forget(NodeID(high: 2, low: 1)))
        #expect(bench.core.member(NodeID(high: 2, low: 1)) != nil, "it is alive")
        bench.receive(from: 1, [.left(subject: 2, incarnation: 1)])
        bench.effects = []
        bench.feed(.forget(NodeID(high: 2, low: 1)))
        #expect(bench.core.member(NodeID(high: 2, low: 1)) == nil)
        #expect(bench.take().contains { if case .event(let event) = $0 { event.kind == .reaped } else { false } })
        bench.receive(from: 1, [Bench.alive(2, 1)])
        #expect(bench.core.member(NodeID(high: 2, low: 1)) == nil, "an echo of its former life")
        bench.receive(from: 1, [Bench.alive(2, 2)])
        #expect(bench.core.member(NodeID(high: 2, low: 1))?.state == .alive, "it came back")
    }

    @Test func addressesThatCanNotBeDialledAreRefused() {
        var bench = Bench()
        let nowhere = Member(id: NodeID(high: 3, low: 1), name: "x", address: SocketAddress(host: .v4(0), port: 1))
        bench.receive(from: 3, [.alive(AliveRecord(nowhere))])
        #expect(bench.core.members.count == 1 && bench.core.counters.recordsRefused == 1)
    }

    @Test func namesAreFoundAndMembersAreInOrderOfTheirIds() {
        let bench = bench(knowing: 5)
        #expect(bench.core.memberNamed("m3")?.id.high == 3)
        #expect(bench.core.memberNamed("me")?.id.high == 100)
        #expect(bench.core.members.map(\.id.high) == [1, 2, 3, 4, 5, 100])
    }
}
