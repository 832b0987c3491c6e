// Runs simulated worlds from the command line: many seeds, or one again with its trace.
import Glibc
import Histories
import Simulator

let usage = """
    usage: coterie-simulate [--seeds N] [--from S] [--seconds T] [--keep-going]
           coterie-simulate --replay SEED [--trace] [--history FILE [--history-format jepsen|porcupine]]
           coterie-simulate --check FILE [--budget STEPS]

    Whole nodes on virtual time, network and disks, with faults; rules are checked at every step. The first seed that breaks
    one is printed and ends the run with exit code 1; --replay runs it again, and --trace prints each step.

      --seeds N      how many seeds to run (default 100)
      --from S       the first seed (default 0)
      --seconds T    stop after so many seconds, even before N seeds
      --keep-going   do not stop at the first broken rule
      --verbose      name each seed before it runs
      --short        faults for 1.2 s only, as in the everyday tests; with --replay too
      --quiet        three nodes at rest for ten minutes each: no clients, no faults
      --replay SEED  run one seed and print its figures
      --trace        with --replay: print every step
      --history FILE with --replay: write what clients did and saw; - is the standard output
      --history-format jepsen or porcupine (default jepsen)
      --check FILE   judge a history of either format, or of porcupine's test data: exit code 0 linearizable, 1 not, 4 given up
      --budget STEPS for each object of the history (default 2000000)
    """

struct Options {
    var seeds: UInt64 = 100
    var from: UInt64 = 0
    var seconds = UInt64.max
    var replay: UInt64?
    var verbose = false
    var quiet = false
    var short = false

    func settings(_ seed: UInt64) -> WorldSettings {
        quiet ? .quiet(seed: seed) : short ? .short(seed: seed) : WorldSettings(seed: seed)
    }
    var trace = false
    var keepGoing = false
    var history: String?
    var historyFormat = HistoryFormat.jepsen
    var check: String?
    var budget = 2_000_000

    init(_ arguments: [String]) {
        var rest = arguments[...]
        func fail(_ why: String) -> Never {
            write(2, "coterie-simulate: \(why) (see --help)\n")
            exit(2)
        }
        while let argument = rest.popFirst() {
            func number() -> UInt64 {
                guard let text = rest.popFirst(), let value = UInt64(text) else { fail("\(argument) needs a number") }
                return value
            }
            func text() -> String {
                guard let text = rest.popFirst() else { fail("\(argument) needs a value") }
                return text
            }
            switch argument {
            case "--seeds": seeds = number()
            case "--from": from = number()
            case "--seconds": seconds = number()
            case "--replay": replay = number()
            case "--trace": trace = true
            case "--history": history = text()
            case "--history-format":
                guard let format = HistoryFormat(rawValue: text()) else { fail("the formats are jepsen and porcupine") }
                historyFormat = format
            case "--check": check = text()
            case "--budget": budget = Int(clamping: number())
            case "--keep-going": keepGoing = true
            case "--verbose": verbose = true
            case "--quiet": quiet = true
            case "--short": short = true
            case "-h", "--help":
                print(usage)
                exit(0)
            default: fail("unknown argument \(argument)")
            }
        }
    }
}

func write(_ descriptor: Int32, _ text: String) {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
        let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
        guard count > 0 else { exit(3) }
        bytes = bytes.dropFirst(count)
    }
}

func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

func monotonicSeconds() -> UInt64 { monotonicNanoseconds() / 1_000_000_000 }

func runOne(_ seed: UInt64, _ options: Options) -> Int32 {
    let world = World(seed: seed, settings: options.settings(seed))
    var lines = ""
    if options.trace {
        world.onTrace = { line in
            lines += line + "\n"
            if lines.utf8.count > 1 << 16 {
                write(1, lines)
                lines = ""
            }
        }
    }
    write(1, "seed \(seed): \(world.settings)\n")
    var isWritten = true
    func writeOut() {
        guard let path = options.history else { return }
        isWritten = writeHistory(world.history, options.historyFormat, to: path)
    }
    do {
        try world.run()
        write(1, lines)
    } catch {
        write(1, lines + "\(error)\n")
        writeOut()
        return 1
    }
    write(
        1, "trace \(String(world.traceDigest, radix: 16)) after \(world.steps) steps, \(world.now)\n\(world.figures)\n")
    writeOut()
    return isWritten ? 0 : 3
}

func runMany(_ options: Options) -> Int32 {
    let start = monotonicSeconds()
    let startNanoseconds = monotonicNanoseconds()
    var total = World.Figures()
    var ran: UInt64 = 0
    var failures = 0
    while ran < options.seeds, monotonicSeconds() - start < options.seconds {
        let seed = options.from + ran
        if options.verbose { write(1, "seed \(seed)\n") }
        let world = World(seed: seed, settings: options.settings(seed))
        ran += 1
        do {
            try world.run()
        } catch {
            write(1, "\(error)\n")
            failures += 1
            if !options.keepGoing { break }
        }
        total += world.figures
    }
    let took = Double(monotonicNanoseconds() - startNanoseconds) / 1e9
    let speed = Int(Double(total.simulated.nanoseconds) / 1e9 / max(took, 1e-9))
    write(1, "\(total.simulated.milliseconds / 1_000) s of simulated time, \(speed) times real time\n")
    write(1, "\(ran) seeds from \(options.from), \(failures) failed, \(monotonicSeconds() - start) s\n\(total)\n")
    return failures == 0 ? 0 : 1
}

let options = Options(Array(CommandLine.arguments.dropFirst()))
if let path = options.check { exit(checkFile(path, budget: options.budget)) }
exit(options.replay.map { runOne($0, options) } ?? runMany(options))
