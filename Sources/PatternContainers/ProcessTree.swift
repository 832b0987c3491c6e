// Everything that a command has started, found in /proc: by process group and session, by parents, and by a mark in the
// environment that descendants inherit. A process would have to clear its environment, start a session of its own and
// outlive its parent to be missed.
import Glibc

struct ProcessTree {
    /// The environment variable that carries the mark.
    static let variable = "COTERIE_PROCESS_TREE"

    /// The command's own process, leader of its session and group.
    let leader: Int32
    /// A text that no other tree has.
    let mark: String

    private struct Process {
        var id: Int32
        var parent: Int32
        var group: Int32
        var session: Int32
    }

    /// Kills all of it, what it starts meanwhile included. True if nothing was left to kill in the end.
    func kill() -> Bool {
        // At once, before anything is looked for.
        if leader > 1 { Glibc.kill(-leader, SIGKILL) }
        for _ in 0..<64 {
            let alive = members()
            if alive.isEmpty { return true }
            // The group first, at once: its members can not slip away one by one.
            if leader > 1 { Glibc.kill(-leader, SIGKILL) }
            for id in alive where id > 1 { Glibc.kill(id, SIGKILL) }
            // Death takes a moment; a process in the kernel's hands may take longer.
            usleep(2_000)
        }
        return members().isEmpty
    }

    /// Living processes; those that are dead but not yet waited for do not count.
    func members() -> [Int32] {
        let own = getpid()
        var processes: [Process] = []
        for name in directoryEntries("/proc") {
            guard let id = Int32(name), id != own, let process = ProcessTree.process(id) else { continue }
            processes.append(process)
        }
        var found = Set<Int32>()
        for process in processes
        where process.session == leader || process.group == leader || process.id == leader || isMarked(process.id) {
            found.insert(process.id)
        }
        var grows = true
        while grows {
            grows = false
            for process in processes where found.contains(process.parent) && found.insert(process.id).inserted {
                grows = true
            }
        }
        return found.sorted()
    }

    /// Nil if it is gone or a zombie.
    private static func process(_ id: Int32) -> Process? {
        let bytes = ReplacedOutput.read("/proc/\(id)/stat", limit: 4_096)
        // The name, in parentheses, may contain anything.
        guard let close = bytes.lastIndex(of: 0x29) else { return nil }
        let fields = bytes[(close + 1)...].split(separator: 32).prefix(4).map { String(decoding: $0, as: UTF8.self) }
        guard fields.count == 4, fields[0] != "Z", fields[0] != "X", let parent = Int32(fields[1]),
            let group = Int32(fields[2]),
            let session = Int32(fields[3])
        else { return nil }
        return Process(id: id, parent: parent, group: group, session: session)
    }

    private func isMarked(_ id: Int32) -> Bool {
        let wanted = Array("\(ProcessTree.variable)=\(mark)".utf8)
        return ReplacedOutput.read("/proc/\(id)/environ", limit: 2 << 20).split(separator: 0).contains {
            $0.elementsEqual(wanted)
        }
    }

    /// A shell script that kills the tree when its standard input ends without `over` (the process that should have done it is
    /// gone), or when the number of seconds in the last line has passed without a further one (that process is frozen). Its
    /// argument is the mark; its first line of input is the leader.
    static let guardScript = """
        trap '' HUP INT TERM
        kill_tree() {
          for round in 1 2 3 4 5 6; do
            [ -n "$leader" ] && kill -KILL -- "-$leader"
            for file in $(grep -lzx "\(variable)=$1" /proc/[0-9]*/environ); do
              id=${file#/proc/}
              kill -KILL "${id%/environ}"
            done
            sleep 0.05
          done
        }
        exec 2>/dev/null
        read -r leader
        timer=
        while read -r word; do
          [ -n "$timer" ] && kill -USR1 "$timer"
          [ "$word" = over ] && exit 0
          (trap 'kill $!; exit' USR1; sleep "$word" & wait $!; kill_tree "$1") &
          timer=$!
        done
        kill_tree "$1"
        """
}
