import Glibc
import Model
import Testing

@testable import Node

@Suite struct DataDirectoryTests {
    @Test func aDirectoryThatOthersCanWriteToIsRefused() throws {
        let scratch = Scratch()
        for mode in [0o770, 0o707, 0o777] as [mode_t] {
            chmod(scratch.path, mode)
            let error = #expect(throws: CoterieError.self) { _ = try DataDirectory(path: scratch.path) }
            #expect(error?.code == .notAllowed && error?.hint?.contains("chmod") == true)
        }
        chmod(scratch.path, 0o755)
        // The socket's own mode and the kernel's word keep others out of what they can only see.
        let directory = try DataDirectory(path: scratch.path)
        for name in ["journal", "pods", "keys", "images"] {
            var info = stat()
            #expect(stat(directory.path + "/" + name, &info) == 0 && info.st_mode & 0o077 == 0)
        }
        for name in ["identity", "lock"] {
            var info = stat()
            #expect(stat(directory.path + "/" + name, &info) == 0 && info.st_mode & 0o077 == 0)
        }
    }

    @Test func twoProcessesDoNotShareADirectoryAndStartsAreCounted() throws {
        let scratch = Scratch()
        let id: NodeID
        do {
            let first = try DataDirectory(path: scratch.path)
            id = first.id
            #expect(first.isNew && first.startCounter == 1)
            // flock holds between two openings of one process as well.
            let error = #expect(throws: CoterieError.self) { _ = try DataDirectory(path: scratch.path) }
            #expect(error?.message.contains("in use") == true)
        }
        let second = try DataDirectory(path: scratch.path)
        #expect(second.id == id && !second.isNew && second.startCounter == 2)
    }
}
