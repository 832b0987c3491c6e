import EventLoop
import Glibc
import Model
import Testing

extension EventLoopTests {
    @Suite struct Watchers {
        @Test func aNewFileIsToldWithItsName() throws {
            try withDirectory { directory in
                try withLoop { loop in
                    let names = Cell<Set<String>>([])
                    let watcher = Cell<DirectoryWatcher?>(nil)
                    watcher.value = try DirectoryWatcher(loop: loop, path: directory) { name in
                        if let name { names.value.insert(name) }
                        if names.value.isSuperset(of: ["one", "two"]) {
                            watcher.value?.close()
                            watcher.value?.close()
                            loop.stop()
                        }
                    }
                    close(open(directory + "/one", O_CREAT | O_WRONLY | O_CLOEXEC, 0o600))
                    LoopTimer(loop: loop).start(after: .milliseconds(2)) {
                        rename(directory + "/one", directory + "/two")
                    }
                }
            }
        }

        @Test func aDirectoryThatIsNotThereIsTold() throws {
            let before = openDescriptors()
            try withLoop { loop in
                #expect(throws: UVError(errno: ENOENT)) {
                    try DirectoryWatcher(loop: loop, path: "/no/such/directory") { _ in }
                }
                loop.stop()
            }
            #expect(openDescriptors() == before)
        }

        @Test func twoWatchersOfOneDirectoryAreApart() throws {
            try withDirectory { directory in
                try withLoop { loop in
                    let first = try DirectoryWatcher(loop: loop, path: directory) { _ in Issue.record("closed") }
                    let second = try DirectoryWatcher(loop: loop, path: directory) { _ in loop.stop() }
                    first.close()
                    close(open(directory + "/x", O_CREAT | O_WRONLY | O_CLOEXEC, 0o600))
                    loop.run()
                    second.close()
                    loop.stop()
                }
            }
        }

        @Test func aSignalIsToldOnTheLoopAndClosedWatchersHearNothing() throws {
            try withLoop { loop in
                let silent = try SignalWatcher(loop: loop, signal: SIGUSR1) { Issue.record("closed") }
                let watcher = Cell<SignalWatcher?>(nil)
                watcher.value = try SignalWatcher(loop: loop, signal: SIGUSR1) {
                    #expect(loop.isOnLoop)
                    watcher.value?.close()
                    loop.stop()
                }
                silent.close()
                kill(getpid(), SIGUSR1)
                #expect(throws: UVError.invalid) { try SignalWatcher(loop: loop, signal: SIGKILL) {} }
            }
        }
    }
}
