// swift-tools-version: 6.2
// The layers of docs/ARCHITECTURE.md: a target names only targets of lower layers. Tests/ArchitectureTests holds this
// file, the imports and that table against each other.
import PackageDescription

/// Release builds optimise across modules (the layers are for people, and the wire's codec is called from all of them) and leave
/// out the run-time checks of exclusive access, which debug builds and all tests have.
let optimised: [SwiftSetting] = [
    .unsafeFlags(["-cross-module-optimization", "-enforce-exclusivity=unchecked"], .when(configuration: .release))
]

/// Release binaries carry the Swift runtime (see DESIGN 4: smaller resident size, quicker start); scripts pass
/// `--static-swift-stdlib`. Everything is Swift 6 language mode.
let package = Package(
    name: "coterie",
    products: [
        .executable(name: "coterie", targets: ["coterie"]),
        .executable(name: "coterie-console", targets: ["coterie-console"]),
        .executable(name: "coterie-init", targets: ["coterie-init"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser.git", from: "1.8.2"),
        .package(url: "https://github.com/jpsim/Yams.git", from: "6.2.2"),
        .package(url: "https://github.com/apple/swift-collections.git", from: "1.6.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird.git", from: "2.28.1"),
    ],
    targets: [
        // Layer 0: C.
        .systemLibrary(name: "CUV", pkgConfig: "libuv", providers: [.apt(["libuv1-dev"])]),
        .systemLibrary(name: "COpenSSL", pkgConfig: "openssl", providers: [.apt(["libssl-dev"])]),
        .target(name: "CPlatform"),

        // Layer 1: values and bytes.
        .target(name: "Model"),
        .target(name: "Wire", dependencies: ["Model", "CPlatform"]),

        // Layer 2: pure protocols and state machines.
        .target(name: "Membership", dependencies: ["Model", "Wire"]),
        .target(name: "Consensus", dependencies: ["Model", "Wire"]),
        .target(name: "Journal", dependencies: ["Model", "Wire", "Consensus"]),
        .target(name: "Leases", dependencies: ["Model", "Wire"]),
        .target(name: "Queues", dependencies: ["Model", "Wire"]),
        .target(name: "ScatterGather", dependencies: ["Model", "Wire"]),
        .target(name: "Scheduling", dependencies: ["Model", "Wire"]),
        .target(name: "Security", dependencies: ["Model", "Wire", "COpenSSL"]),
        .target(name: "Histories"),

        // Layer 3: one node, whole; and the loop.
        .target(
            name: "NodeCore",
            dependencies: ["Model", "Wire", "Membership", "Consensus", "Leases", "Queues", "Scheduling"]),
        .target(name: "EventLoop", dependencies: ["Model", "CUV", "CPlatform"]),

        // Layer 4.
        .target(name: "Transport", dependencies: ["Model", "Wire", "Security", "EventLoop"]),
        .target(name: "Manifests", dependencies: ["Model", .product(name: "Yams", package: "Yams")]),
        .target(name: "Pods", dependencies: ["Model", "Wire", "EventLoop", "CPlatform"]),
        .target(
            name: "Client",
            dependencies: ["Model", "Wire", "Security", "NodeCore", "EventLoop", "Transport"]),

        // Layer 5.
        .target(
            name: "Node",
            dependencies: [
                "Model", "Wire", "Membership", "Consensus", "Journal", "Queues", "Scheduling", "Security", "NodeCore",
                "EventLoop", "Transport", "Client", "Pods", "CPlatform",
            ]),
        .target(
            name: "Simulator",
            dependencies: [
                "Model", "Wire", "Membership", "Consensus", "Journal", "NodeCore", "Queues", "Leases", "Scheduling",
                "Histories",
            ]),
        .target(
            name: "PatternContainers",
            dependencies: [
                "Model", "Wire", "EventLoop", "Transport", "Client", "ScatterGather", "Queues", "Leases", "Scheduling",
                "NodeCore",
            ]),

        // Layer 6: programs.
        .executableTarget(
            name: "coterie",
            dependencies: [
                "Model", "Wire", "Security", "EventLoop", "CPlatform", "NodeCore", "Client", "Node", "Transport",
                "Manifests", "Pods",
                "PatternContainers", "Queues", "Leases", "Scheduling", "ScatterGather", "Consensus", "Journal",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ]),
        .executableTarget(
            name: "coterie-console",
            dependencies: [
                "Model", "Wire", "EventLoop", "Client", "Transport", "Security",
                .product(name: "Hummingbird", package: "hummingbird"),
            ]),
        .executableTarget(name: "coterie-init"),
        .executableTarget(name: "coterie-simulate", dependencies: ["Simulator", "Histories"]),

        // For scripts/bench-consensus; no part of the product.
        .executableTarget(
            name: "consensus-rate", dependencies: ["Model", "Consensus"], path: "Benchmarks/consensus-rate"),

        // Tests.
        .target(
            name: "TestSupport",
            dependencies: [
                "Model", "Wire", "CPlatform", "EventLoop", "NodeCore", "Queues", "Leases", "Client", "Histories",
            ],
            path: "Tests/TestSupport"),
        .testTarget(name: "ArchitectureTests"),
        .testTarget(name: "ModelTests", dependencies: ["Model"]),
        .testTarget(name: "WireTests", dependencies: ["Model", "Wire"]),
        .testTarget(name: "SecurityTests", dependencies: ["Model", "Wire", "Security"]),
        .testTarget(name: "MembershipTests", dependencies: ["Model", "Wire", "Membership"]),
        .testTarget(name: "ConsensusTests", dependencies: ["Model", "Wire", "Consensus", "Journal", "Simulator"]),
        .testTarget(name: "JournalTests", dependencies: ["Model", "Wire", "Consensus", "Journal", "Simulator"]),
        .testTarget(name: "LeasesTests", dependencies: ["Model", "Wire", "Leases"]),
        .testTarget(name: "QueuesTests", dependencies: ["Model", "Wire", "Queues"]),
        .testTarget(name: "HistoriesTests", dependencies: ["Histories"]),
        .testTarget(name: "ScatterGatherTests", dependencies: ["Model", "Wire", "ScatterGather"]),
        .testTarget(name: "SchedulingTests", dependencies: ["Model", "Wire", "Scheduling"]),
        .testTarget(name: "EventLoopTests", dependencies: ["Model", "EventLoop", "CPlatform"]),
        .testTarget(
            name: "ClientTests",
            dependencies: ["Model", "Wire", "Security", "NodeCore", "Queues", "EventLoop", "Transport", "Client"]),
        .testTarget(name: "ManifestsTests", dependencies: ["Model", "Wire", "Manifests"]),
        .testTarget(
            name: "PodsTests", dependencies: ["Model", "Wire", "EventLoop", "Pods", "CPlatform", "coterie-init"]),
        .testTarget(
            name: "PatternContainersTests",
            dependencies: [
                "Model", "Wire", "EventLoop", "PatternContainers", "CPlatform", "Leases", "Queues", "Client",
                "Transport", "ScatterGather", "Scheduling",
            ]),
        .testTarget(
            name: "NodeCoreTests",
            dependencies: [
                "Model", "Wire", "Membership", "Consensus", "NodeCore", "Simulator", "Queues", "Leases", "Scheduling",
                "coterie-simulate",
            ]),
        .testTarget(
            name: "NodeTests",
            dependencies: [
                "Model", "Wire", "Consensus", "Journal", "Security", "EventLoop", "Transport", "NodeCore", "Scheduling",
                "Queues",
                "Node",
            ]),
        .testTarget(
            name: "IntegrationTests",
            dependencies: ["TestSupport", "Wire", "Histories", "coterie", "coterie-init", "coterie-console"]),
    ],
    swiftLanguageModes: [.v6]
)

for target in package.targets where [.regular, .executable].contains(target.type) {
    target.swiftSettings = (target.swiftSettings ?? []) + optimised
}
