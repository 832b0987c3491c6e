import Model
import Testing

@testable import Manifests

@Suite("Pods that are read")
struct PodDecodingTests {
    @Test func everyFieldArrives() throws {
        let spec = try pod(
            """
            apiVersion: v1
            kind: Pod
            metadata:
              name: all
              namespace: default
              labels: {app: x, example.com/tier: "1"}
              annotations: {note: free, coterie.internal/listen: "proxy=6379, proxy=6380"}
            spec:
              restartPolicy: OnFailure
              terminationGracePeriodSeconds: 5
              activeDeadlineSeconds: 60
              hostNetwork: true
              hostname: h
              nodeName: node-1
              nodeSelector: {disk: ssd}
              initContainers:
                - {name: once, image: box}
                - {name: proxy, image: box, restartPolicy: Always, startupProbe: {tcpSocket: {port: web}}}
              containers:
                - name: main
                  image: localhost/host
                  command: [run]
                  args: ["--x", "1"]
                  workingDir: /srv
                  env:
                    - {name: A, value: "1"}
                    - {name: B}
                    - {name: C, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
                    - {name: D, valueFrom: {configMapKeyRef: {name: conf, key: k}}}
                    - {name: E, valueFrom: {secretKeyRef: {name: sec, key: pass}}}
                    - {name: F, valueFrom: {secretKeyRef: {name: none, key: none, optional: true}}}
                  envFrom:
                    - {prefix: P_, configMapRef: {name: conf}}
                  ports: [{containerPort: 80, name: web, protocol: TCP}]
                  resources:
                    requests: {memory: 64Mi}
                    limits: {memory: 64Mi, cpu: 0.5}
                  volumeMounts:
                    - {name: mem, mountPath: /m, readOnly: true, subPath: a/b}
                  livenessProbe: {httpGet: {port: web, path: /ok}, periodSeconds: 3,
                    timeoutSeconds: 2, initialDelaySeconds: 1, failureThreshold: 5}
                  readinessProbe: {exec: {command: ["true"]}, successThreshold: 2}
              volumes:
                - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Gi}}
                - {name: host, hostPath: {path: /tmp, type: Directory}}
                - {name: conf, configMap: {name: conf, items: [{key: k, path: d/f}]}}
                - {name: sec, secret: {secretName: sec}}
            ---
            apiVersion: v1
            kind: ConfigMap
            metadata: {name: conf}
            data: {k: v}
            ---
            apiVersion: v1
            kind: Secret
            metadata: {name: sec}
            type: Opaque
            data: {pass: c2VjcmV0}
            stringData: {user: me}
            """)
        #expect(spec.labels == ["app": "x", "example.com/tier": "1"])
        #expect(
            spec.restartPolicy == .onFailure && spec.terminationGracePeriod == .seconds(5)
                && spec.activeDeadline == .seconds(60))
        #expect(
            spec.hostNetwork && spec.hostname == "h" && spec.nodeName == "node-1"
                && spec.nodeSelector == ["disk": "ssd"])
        #expect(spec.initContainers.map(\.restartAlways) == [false, true])
        #expect(spec.initContainers.last?.startupProbe == Probe(action: .tcp(port: 80)))
        let main = try #require(spec.containers.first)
        #expect(
            main.environment == [
                EnvironmentVariable(name: "P_k", value: .literal("v")),
                EnvironmentVariable(name: "A", value: .literal("1")),
                EnvironmentVariable(name: "B", value: .literal("")),
                EnvironmentVariable(name: "C", value: .field("metadata.labels['app']")),
                EnvironmentVariable(name: "D", value: .literal("v")),
                EnvironmentVariable(name: "E", value: .literal("secret")),
            ])
        #expect(main.resources == Resources(memoryBytes: 64 << 20, cpuMilli: 500))
        #expect(main.mounts == [VolumeMount(name: "mem", mountPath: "/m", readOnly: true, subPath: "a/b")])
        #expect(
            main.livenessProbe
                == Probe(
                    action: .http(path: "/ok", port: 80), initialDelay: .seconds(1), period: .seconds(3),
                    timeout: .seconds(2), failureThreshold: 5))
        #expect(main.readinessProbe == Probe(action: .exec(["true"]), successThreshold: 2))
        #expect(
            spec.volumes.map(\.source) == [
                .emptyDir(inMemory: true, sizeLimit: 1 << 30), .hostPath("/tmp", type: "Directory"),
                .files(["d/f": Array("v".utf8)]),
                .files(["pass": Array("secret".utf8), "user": Array("me".utf8)]),
            ])
    }

    @Test func bytesCanNotBeVariables() {
        let text =
            container("envFrom: [{configMapRef: {name: b}}]")
            + "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\nbinaryData: {raw: /w==}\n"
        #expect(
            errors(text) == [
                "f:9:39: spec.containers[0].envFrom[0].configMapRef.name: the key raw of ConfigMap b is not "
                    + "text, and can not be a variable"
            ])
    }

    @Test(
        arguments: [
            ("500m", 500), ("0.5", 500), ("2", 2_000), ("0.1", 100), ("1.001", 1_001), ("1e3", nil), ("1.0001", nil),
            ("0", nil), ("-1", nil), ("m", nil),
        ] as [(String, UInt64?)])
    func coresAreThousandths(text: String, milli: UInt64?) {
        #expect(ScalarValue.cpuMilli(Scalar(text: text, plain: true)) == milli)
    }

    @Test(
        arguments: [
            ("", .null), ("~", .null), ("true", .boolean(true)), ("no", .ambiguousBoolean), ("12", .integer(12)),
            ("-3", .integer(-3)),
            ("017", .ambiguousNumber), ("0x1F", .ambiguousNumber), ("0o7", .ambiguousNumber),
            ("1_000", .ambiguousNumber), ("1.5", .float(1.5)),
            ("1e3", .float(1_000)), (".5", .float(0.5)), ("1.2.3", .string), ("-", .string), (".", .string),
            ("10.0.0.1", .string), ("a1", .string),
            ("0xZZ", .string), ("nan", .string), ("inf", .string), ("99999999999999999999", .ambiguousNumber),
            ("2024-01-01", .string),
        ] as [(String, Scalar.Meaning)])
    func bareScalarsHaveTheTypeOfTheCoreSchema(text: String, meaning: Scalar.Meaning) {
        #expect(Scalar(text: text, plain: true).meaning == meaning)
        #expect(Scalar(text: text, plain: false).meaning == .string)
    }

    @Test func base64IsStrict() {
        for text in ["", "f", "fo", "foo", "foob", "\u{0}ÿ>"] {
            #expect(Base64.decode(Array(Base64.encode(Array(text.utf8)).utf8)) == Array(text.utf8))
        }
        #expect(Base64.encode(Array("foob".utf8)) == "Zm9vYg==")
        for bad in ["Zg", "Zg=", "Zh==", "Z===", "====", "Zg==Zg==", "Zm9*", "Zm=v"] {
            #expect(Base64.decode(Array(bad.utf8)) == nil, "\(bad)")
        }
    }

    @Test func suggestionsAreNear() {
        #expect(Suggestion.nearest(to: "comand", among: ["command", "args"]) == "command")
        #expect(Suggestion.nearest(to: "agrs", among: ["command", "args"]) == "args")
        #expect(Suggestion.nearest(to: "xyz", among: ["command", "args"]) == nil)
        #expect(Suggestion.nearest(to: "IMAGE", among: ["image"]) == "image")
    }
}
