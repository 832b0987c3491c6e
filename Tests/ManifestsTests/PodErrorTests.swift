import Model
import Testing

@testable import Manifests

@Suite("Pods that do not hold together")
struct PodErrorTests {
    @Test func mountsNeedTheirVolume() {
        #expect(
            errors(
                container(
                    "volumeMounts:\n  - {name: dat, mountPath: /a}\n  - {name: data, mountPath: b}\n  - {name: data, mountPath: /a}"
                ) + "\n  volumes: [{name: data, emptyDir: {}}]") == [
                    "f:10:18: spec.containers[0].volumeMounts[0].name: the pod has no volume named dat (did you mean data?)",
                    "f:11:35: spec.containers[0].volumeMounts[1].mountPath: \"b\" is not an absolute path",
                    "f:12:35: spec.containers[0].volumeMounts[2].mountPath: the container already mounts a volume there, in line 10",
                ])
    }

    @Test func pathsMayNotClimb() {
        #expect(
            errors(
                container("volumeMounts:\n  - {name: d, mountPath: /a/../b, subPath: ../x}")
                    + "\n  volumes: [{name: d, emptyDir: {}}]") == [
                    "f:10:32: spec.containers[0].volumeMounts[0].mountPath: the path may not hold \"..\"",
                    "f:10:50: spec.containers[0].volumeMounts[0].subPath: the path may not hold \"..\"",
                ])
    }

    @Test func volumesHaveOneSource() {
        #expect(
            errors(
                spec(
                    "volumes:\n  - {name: a}\n  - {name: b, emptyDir: {}, hostPath: {path: /x}}\n  - {name: b, emptyDir: {}}"
                )) == [
                    "f:7:7: spec.volumes[0]: the volume has no source (exactly one of emptyDir, hostPath, configMap, secret)",
                    "f:8:7: spec.volumes[1]: the volume has more than one source: emptyDir, hostPath (exactly "
                        + "one of emptyDir, hostPath, configMap, secret)",
                    "f:9:14: spec.volumes[2].name: the pod already has a volume named b, in line 8",
                ])
    }

    @Test func containerNamesAreUniqueInThePod() {
        #expect(
            errors(spec("initContainers:\n  - {name: c, image: i}")) == [
                "f:9:14: spec.containers[0].name: the pod already has a container named c, in line 7"
            ])
    }

    @Test func theHostImageNeedsACommand() {
        #expect(
            errors(spec("").replacing("image: box", with: "image: localhost/host")) == [
                "f:8:7: spec.containers[0].command: required with the image localhost/host, which has no program of its own"
            ])
    }

    @Test func listenersNeedTheirContainer() {
        func annotated(_ text: String) -> String {
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    \(text)\nspec: {containers: [{name: proxy, image: i}]}"
        }
        #expect(
            errors(annotated("coterie.internal/listen: \"proxi=6379,proxy=0,proxy=80,proxy=80,x\"")) == [
                "f:6:30: metadata.annotations['coterie.internal/listen']: the pod has no container named proxi (did you mean proxy?)",
                "f:6:30: metadata.annotations['coterie.internal/listen']: \"proxy=0\" is not CONTAINER=PORT or CONTAINER (like proxy=6379)",
                "f:6:30: metadata.annotations['coterie.internal/listen']: port 80 is asked for twice",
                "f:6:30: metadata.annotations['coterie.internal/listen']: the pod has no container named x",
            ])
        #expect(
            errors(annotated("coterie.internal/lisen: \"proxy=1\"")) == [
                "f:6:5: metadata.annotations['coterie.internal/lisen']: unknown annotation of Coterie's own "
                    + "(did you mean coterie.internal/listen?)"
            ])
        #expect(errors(annotated("example.com/anything: \"x\"")).isEmpty)
    }

    @Test func probesHaveOneActionAndKnownPorts() {
        #expect(
            errors(
                container(
                    "ports: [{name: web, containerPort: 80}]\nlivenessProbe: {}\nreadinessProbe: {tcpSocket: "
                        + "{port: wob}}\nstartupProbe: {exec: {command: [a]}, successThreshold: 2}"
                )) == [
                    "f:10:22: spec.containers[0].livenessProbe: exactly one of exec, tcpSocket and httpGet is needed",
                    "f:11:42: spec.containers[0].readinessProbe.tcpSocket.port: the pod has no port named wob (did you mean web?)",
                    "f:12:62: spec.containers[0].startupProbe.successThreshold: must be 1 for startup and liveness",
                ])
        #expect(
            errors(spec("initContainers:\n  - {name: i, image: i, livenessProbe: {exec: {command: [a]}}}")) == [
                "f:7:42: spec.initContainers[0].livenessProbe: an init container that runs once has no probes "
                    + "(restartPolicy: Always makes it a sidecar)"
            ])
    }

    @Test func requestsNeedLimits() {
        #expect(
            errors(container("resources:\n  requests: {memory: 64Mi, cpu: 2}\n  limits: {cpu: 1500m}")) == [
                "f:10:28: spec.containers[0].resources.requests.memory: a request without a limit would have no "
                    + "effect (Coterie has limits only; give limits.memory)",
                "f:10:39: spec.containers[0].resources.requests.cpu: more than the limit",
            ])
        #expect(
            errors(container("resources:\n  limits: {cpu: 0.0001, memory: 1.5.2}")) == [
                "f:10:23: spec.containers[0].resources.limits.cpu: expected a number of cores, found the number "
                    + "0.0001 (like 500m, 0.5 or 2)",
                "f:10:39: spec.containers[0].resources.limits.memory: expected a size, found \"1.5.2\" (like 64Mi or 1Gi)",
            ])
    }

    @Test func variablesAreSetOnceAndFromOneSource() {
        #expect(
            errors(
                container(
                    "env:\n  - {name: A, value: x}\n  - {name: A, value: z}\n  - {name: B, value: z, valueFrom: "
                        + "{fieldRef: {fieldPath: metadata.nam}}}\n  - {name: C, valueFrom: {}}"
                )) == [
                    "f:11:18: spec.containers[0].env[1].name: the variable A is set twice (first in line 10)",
                    "f:12:42: spec.containers[0].env[2].valueFrom: value and valueFrom exclude each other",
                    "f:12:65: spec.containers[0].env[2].valueFrom.fieldRef.fieldPath: unknown field path: "
                        + "metadata.nam (did you mean metadata.name?)",
                    "f:13:32: spec.containers[0].env[3].valueFrom: exactly one of fieldRef, configMapKeyRef and secretKeyRef is needed",
                ])
    }

    @Test func referencesMustBeInTheFile() {
        let config = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {key: v}\n"
        #expect(
            errors(
                container(
                    "envFrom: [{configMapRef: {name: cnof}}, {secretRef: {name: s, optional: true}}]\nenv: "
                        + "[{name: A, valueFrom: {configMapKeyRef: {name: conf, key: kee}}}]"
                ) + "\n  volumes: [{name: v, secret: {secretName: conf}}]" + config) == [
                    "f:9:39: spec.containers[0].envFrom[0].configMapRef.name: there is no ConfigMap named cnof "
                        + "in this file (did you mean conf?)",
                    "f:10:70: spec.containers[0].env[0].valueFrom.configMapKeyRef.key: ConfigMap conf has no key kee (did you mean key?)",
                    "f:11:44: spec.volumes[0].secret.secretName: there is no Secret named conf in this file (it "
                        + "must be a document of the same file)",
                ])
    }

    @Test func secretsMustBeBase64() {
        #expect(
            errors("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: not*base64}\nstringData: {b: x}\n")
                == [
                    "f:4:11: data.a: not base64 (put plain text into stringData)"
                ])
    }

    @Test func podsThatHoldTooMuchAreRefused() {
        let text = container("command: [\"" + String(repeating: "x", count: 1_100_000) + "\"]")
        #expect(
            errors(text) == ["f:6:3: spec: the pod holds 1100001 bytes with its files, more than the limit of 1048576"])
    }

    @Test func objectsAndTheirPodsHaveUniqueNames() {
        let deployment =
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: p}\nspec:\n  replicas: 2\n  selector: "
            + "{matchLabels: {a: b}}\n  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}\n"
        let twin = spec("").replacing("name: p", with: "name: p-1")
        #expect(
            errors(deployment + "---\n" + twin) == [
                "f:12:9: metadata.name: Pod p-1 would make the pod p-1, which Deployment p makes too"
            ])
        #expect(
            errors(deployment + "---\n" + deployment) == [
                "f:11:18: metadata.name: Deployment p exists already in this file, in line 3"
            ])
    }
}
