// The root's side of its clients: the one that feeds the job and takes its result, and others that only fetch the result.
import EventLoop
import Model
import ScatterGather

extension GatherRoot {
    func clientConnected(_ stream: any GatherStream) { clients.append(GatherClientLink(self, stream)) }

    /// A client has said who it is: it feeds the job.
    func feederArrived(_ link: GatherClientLink, detaches: Bool) {
        // It has lost a connection and found another; the old one may not know yet.
        if let feeder, feeder !== link { feeder.close() }
        feeder = link
        hadFeeder = true
        isDetached = detaches
        patience.stop()
        if !filesComplete { files = [] }
    }

    func feederSentAllFiles() {
        guard !filesComplete else { return }
        filesArrived()
        beginInput()
        carryOut()
    }

    func keepFile(_ path: String, executable: Bool, _ bytes: [UInt8]) {
        guard !filesComplete else { return }
        do throws(CoterieError) {
            if files.last?.path != path {
                guard files.count < GatherLimits.fileCount else {
                    throw CoterieError(.tooLarge, "more than \(GatherLimits.fileCount) files")
                }
                files.append(try GatherShippedFile(path: path, executable: executable, scratch: options.scratch))
            }
            try files.last?.content.append(bytes)
        } catch {
            fail(error.message)
        }
    }

    func clientGone(_ link: GatherClientLink) {
        clients.removeAll { $0 === link }
        if feeder === link {
            feeder = nil
            if !isDetached { waitForClient() }
        }
        deliverOrEnd()
        exitIfServed()
    }
}

final class GatherClientLink {
    private unowned let root: GatherRoot
    private(set) var channel: GatherChannel?
    private var isKnown = false
    private var fetches = false
    private(set) var detaches = false
    private var sent: UInt64 = 0
    /// Of the result, passed on by the client.
    private(set) var consumed: UInt64 = 0
    private var saidTaken = false
    private var saidResultEnd = false
    private var saidFinal = false

    init(_ root: GatherRoot, _ stream: any GatherStream) {
        self.root = root
        let channel = GatherChannel(
            stream, loop: root.loop, onMessage: { [weak self] message in self?.received(message) },
            onClosed: { [weak self] _ in self?.gone() })
        channel.onDrain = { [weak self] in self?.pump() }
        self.channel = channel
    }

    /// Takes everything, and has taken it.
    func hasAll(_ total: UInt64) -> Bool { isKnown && !detaches && saidResultEnd && consumed >= total }

    private func received(_ message: GatherMessage) {
        guard isKnown else {
            guard case .clientHello(let fetches, let detaches, let offset) = message else {
                channel?.fail("it did not say who it is")
                return
            }
            isKnown = true
            self.fetches = fetches
            self.detaches = detaches
            (sent, consumed) = (offset, offset)
            if !fetches { root.feederArrived(self, detaches: detaches) }
            channel?.send(
                .clientWelcome(
                    instance: root.instance, inputTaken: root.spool?.count ?? 0, filesTaken: root.filesComplete,
                    inputEnded: root.machine.inputEnded))
            pump()
            return
        }
        switch message {
        case .file(let path, let executable, let bytes, _) where !fetches && isShippable(path):
            root.keepFile(path, executable: executable, bytes)
        case .filesEnd where !fetches: root.feederSentAllFiles()
        case .input(let bytes) where !fetches: root.takeInput(bytes)
        case .inputEnd where !fetches:
            root.endInput()
            pump()
        case .consumed(let count):
            consumed = max(consumed, min(count, sent))
            if !fetches && !detaches { root.results?.forget(before: consumed) }
            root.considerHolding()
            root.deliverOrEnd()
            pump()
        case .done:
            close()
            gone()
        case .alive: break
        case .file, .filesEnd, .input, .inputEnd, .clientHello, .clientWelcome, .inputTaken, .result, .resultEnd,
            .progress, .final,
            .leafHello, .ask, .output, .ended, .leafWelcome, .shard, .shardInput, .shardInputEnd, .cancel, .stop:
            channel?.fail("it said what only others say")
        }
    }

    /// Sends what there is room for: the result, its end, the end of the job.
    func pump() {
        guard isKnown, channel != nil else { return }
        if !saidTaken && root.machine.inputEnded && !fetches {
            saidTaken = true
            channel?.send(.inputTaken)
        }
        if !detaches {
            while let channel, let results = root.results, !channel.isCongested, sent < results.available {
                do throws(CoterieError) {
                    let bytes = try results.read(at: sent, limit: GatherLimits.chunkBytes)
                    guard !bytes.isEmpty else { break }
                    sent += UInt64(bytes.count)
                    channel.send(.result(bytes))
                } catch {
                    return root.fail(error.message)
                }
            }
            if let end = root.end, sent >= end.resultBytes, !saidResultEnd {
                saidResultEnd = true
                channel?.send(.resultEnd(end.resultBytes))
                root.deliverOrEnd()
            }
        }
        if let end = root.finalEnd, !saidFinal, detaches || hasAll(end.resultBytes) {
            saidFinal = true
            channel?.send(.final(end))
        }
    }

    func beat(_ progress: GatherProgress) {
        guard isKnown, !saidFinal else { return }
        channel?.send(.progress(progress))
        pump()
    }

    private func gone() {
        channel = nil
        root.clientGone(self)
    }

    func close() {
        channel?.close()
        channel = nil
    }
}
