import Glibc
import Model
import Testing

@testable import Node

/// Pods of an agent that is not root run under its own uid: nothing but a mask keeps keys from them.
@Suite struct PodOriginTests {
    private func options(_ data: String, key: String?) -> AgentOptions {
        var options = AgentOptions(
            name: "n", bind: .loopback(port: 0), dataDirectory: data,
            programs: .init(coterie: "", console: "", initProcess: ""))
        options.keyFile = key
        return options
    }

    private func make(_ path: String) { #expect(mkdir(path, 0o700) == 0) }

    private func touch(_ path: String) {
        let descriptor = open(path, O_WRONLY | O_CREAT, 0o600)
        #expect(descriptor >= 0)
        close(descriptor)
    }

    @Test func theKeyFileAndNodesBesideThisOneAreHidden() throws {
        let scratch = Scratch()
        let (own, other, files) = (scratch.path + "/a", scratch.path + "/b", scratch.path + "/files")
        for path in [own, other, other + "/keys", files] { make(path) }
        touch(other + "/keys/cluster.key")
        touch(scratch.path + "/my.key")
        let hidden = PodOrigin.secrets(options(own, key: scratch.path + "/my.key"), own)
        #expect(Set(hidden) == [own, other, scratch.path + "/my.key"])
        for path in ["/b/keys/cluster.key", "/my.key"] { unlink(scratch.path + path) }
        for path in ["/b/keys", "/b", "/a", "/files"] { rmdir(scratch.path + path) }
    }

    /// Its other nodes may start after this one.
    @Test func aDirectoryThatUpMadeIsHiddenAsAWhole() throws {
        let scratch = Scratch()
        let own = scratch.path + "/node0"
        make(own)
        for file in ["/cluster.json", "/cluster.key"] { touch(scratch.path + file) }
        #expect(PodOrigin.secrets(options(own, key: nil), own).contains(scratch.path))
        rmdir(own)
    }
}
