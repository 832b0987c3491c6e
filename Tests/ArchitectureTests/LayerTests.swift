import Foundation
import Testing

/// SwiftPM lets a target import whatever is built. These tests hold three things against each other: the imports in Sources,
/// the dependencies that Package.swift declares, and the layer table of docs/ARCHITECTURE.md.
struct LayerTests {
    /// The package's own directory, also when it was built through a link to it.
    static let root = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath().deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent()

    /// Target to layer, from the table in docs/ARCHITECTURE.md: rows `| LAYER | `A`, `B` | duty |`.
    static func layers() throws -> [String: Int] {
        let text = try String(contentsOf: root.appendingPathComponent("docs/ARCHITECTURE.md"), encoding: .utf8)
        var layers: [String: Int] = [:]
        for line in text.split(separator: "\n") where line.hasPrefix("| ") {
            let cells = line.split(separator: "|").map { $0.trimmingCharacters(in: .whitespaces) }
            guard cells.count >= 2, let layer = Int(cells[0]) else { continue }
            for name in cells[1].matches(of: /`([A-Za-z-]+)`/) { layers[String(name.1)] = layer }
        }
        return layers
    }

    static func targets() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: root.appendingPathComponent("Sources").path).sorted()
    }

    /// Modules that the Swift files of a target import, with one file as the witness of each.
    static func imports(of target: String) throws -> [String: String] {
        let folder = root.appendingPathComponent("Sources/\(target)")
        var found: [String: String] = [:]
        let files = FileManager.default.enumerator(at: folder, includingPropertiesForKeys: nil)
        while let file = files?.nextObject() as? URL {
            guard file.pathExtension == "swift" else { continue }
            let text = try String(contentsOf: file, encoding: .utf8)
            for match in text.matches(
                of:
                    /(?m)^\s*(?:@\w+\s+)*(?:public |internal |package |private )?import (?:struct |class |enum |func )?(\w+)/
            ) {
                found[String(match.1)] = file.lastPathComponent
            }
        }
        return found
    }

    /// Target to declared dependencies, read out of Package.swift.
    static func declared() throws -> [String: Set<String>] {
        let text = try String(contentsOf: root.appendingPathComponent("Package.swift"), encoding: .utf8)
        var result: [String: Set<String>] = [:]
        for match in text.matches(
            of:
                /\.(?:target|executableTarget|systemLibrary)\(\s*name: "([\w-]+)"(?:,\s*dependencies: \[((?:[^\]]|\n)*)\])?/
        ) {
            var names: Set<String> = []
            if let list = match.2 {
                for name in list.matches(of: /(?:name: )?"([\w-]+)"/) { names.insert(String(name.1)) }
            }
            result[String(match.1)] = names
        }
        return result
    }

    @Test func everyTargetHasALayer() throws {
        let layers = try LayerTests.layers()
        let targets = try LayerTests.targets()
        try #require(!layers.isEmpty && !targets.isEmpty)
        for target in targets { #expect(layers[target] != nil, "\(target) is missing in docs/ARCHITECTURE.md") }
        for target in layers.keys { #expect(targets.contains(target), "\(target) is in the table but not in Sources") }
    }

    @Test func everyTargetIsDeclared() throws {
        let declared = try LayerTests.declared()
        for target in try LayerTests.targets() {
            #expect(declared[target] != nil, "\(target) is missing in Package.swift")
        }
    }

    @Test func declaredDependenciesGoDownward() throws {
        let layers = try LayerTests.layers()
        for (target, names) in try LayerTests.declared() {
            guard let own = layers[target] else { continue }
            for name in names {
                guard let other = layers[name] else { continue }
                #expect(other <= own, "Package.swift: \(target) depends on \(name), which lies above it")
            }
        }
    }

    /// The other tests see what they should: a scan that finds nothing would pass them all.
    @Test func theScanSeesImportsAndDependencies() throws {
        #expect(
            Set(try LayerTests.imports(of: "EventLoop").keys).isSuperset(of: ["CUV", "CPlatform", "Model", "Glibc"]))
        #expect(try LayerTests.declared()["EventLoop"] == ["Model", "CUV", "CPlatform"])
        #expect(try LayerTests.layers()["EventLoop"] == 3)
    }

    @Test func importsGoDownward() throws {
        let layers = try LayerTests.layers()
        for target in try LayerTests.targets() {
            guard let own = layers[target] else { continue }
            for (module, file) in try LayerTests.imports(of: target) {
                guard let other = layers[module] else { continue }
                // Within a layer, an arrow must be declared in Package.swift, which refuses circles.
                #expect(other <= own, "\(target)/\(file) imports \(module), which lies above it")
            }
        }
    }

    @Test func importsAreDeclared() throws {
        let ours = Set(try LayerTests.targets())
        let declared = try LayerTests.declared()
        for target in ours {
            for (module, file) in try LayerTests.imports(of: target) where ours.contains(module) {
                #expect(
                    declared[target]?.contains(module) == true,
                    "\(target)/\(file) imports \(module) without declaring it")
            }
        }
    }

    @Test func declaredDependenciesAreUsed() throws {
        let ours = Set(try LayerTests.targets())
        for (target, names) in try LayerTests.declared() where ours.contains(target) {
            let used = Set(try LayerTests.imports(of: target).keys)
            for name in names where ours.contains(name) {
                #expect(used.contains(name), "\(target) declares \(name) and never imports it")
            }
        }
    }

    @Test func pureLayersTouchNoWorld() throws {
        let layers = try LayerTests.layers()
        let forbidden: Set = ["Foundation", "Glibc", "Dispatch", "CUV", "Darwin", "Musl"]
        for target in try LayerTests.targets() where (1...2).contains(layers[target] ?? 0) || target == "NodeCore" {
            for (module, file) in try LayerTests.imports(of: target) {
                #expect(
                    !forbidden.contains(module),
                    "\(target)/\(file) imports \(module): cores have no I/O, clock or threads")
            }
        }
    }

    @Test func theSimulatorLinksNoLoop() throws {
        #expect(try LayerTests.imports(of: "Simulator")["EventLoop"] == nil)
        #expect(try LayerTests.imports(of: "Simulator")["CUV"] == nil)
    }
}
