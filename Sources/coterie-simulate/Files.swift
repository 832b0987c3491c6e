// Files of histories, read and written whole.
import Glibc
import Histories

/// What is in a file, of at most 1 GiB; nil, with a message, if it can not be read.
func readFile(_ path: String) -> [UInt8]? {
    guard let file = fopen(path, "r") else {
        write(2, "coterie-simulate: can not open \(path): \(String(cString: strerror(errno)))\n")
        return nil
    }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while bytes.count <= 1 << 30 {
        let count = fread(&buffer, 1, buffer.count, file)
        if count == 0 { return ferror(file) == 0 ? bytes : nil }
        bytes += buffer[..<count]
    }
    write(2, "coterie-simulate: \(path) is too large\n")
    return nil
}

/// False, with a message, if the file can not be written. "-" is the standard output.
func writeHistory(_ history: History, _ format: HistoryFormat, to path: String) -> Bool {
    let descriptor = path == "-" ? 1 : open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    guard descriptor >= 0 else {
        write(2, "coterie-simulate: can not write \(path): \(String(cString: strerror(errno)))\n")
        return false
    }
    var lines = ""
    history.write(format) { line in
        lines += line
        if lines.utf8.count > 1 << 16 {
            write(descriptor, lines)
            lines = ""
        }
    }
    write(descriptor, lines)
    return path == "-" || close(descriptor) == 0
}

/// The exit code: 0 linearizable, 1 not, 2 not a history, 4 given up.
func checkFile(_ path: String, budget: Int) -> Int32 {
    guard let bytes = readFile(path) else { return 2 }
    do {
        let verdict = try History(parsing: bytes).check(budget: budget)
        write(1, "\(verdict)\n")
        return verdict.isLinearizable ? 0 : verdict.violations.isEmpty ? 4 : 1
    } catch {
        write(2, "coterie-simulate: \(path): \(error)\n")
        return 2
    }
}
