import Model
import Testing

@testable import Manifests

@Suite("Fields that do not fit")
struct FieldErrorTests {
    @Test func unknownFieldsAreNamedWithASuggestion() {
        #expect(
            errors(container("commnad: [a]\nfoo: 1")) == [
                "f:9:7: spec.containers[0].commnad: unknown field (did you mean command?)",
                "f:10:7: spec.containers[0].foo: unknown field",
            ])
        #expect(
            errors(spec("restartPolicyy: Never")) == [
                "f:6:3: spec.restartPolicyy: unknown field (did you mean restartPolicy?)"
            ])
    }

    @Test func foreignFieldsAreToldFromMistakes() {
        #expect(
            errors(spec("affinity: {}\ntolerations: []")) == [
                "f:6:3: spec.affinity: a Kubernetes field that Coterie does not have",
                "f:7:3: spec.tolerations: a Kubernetes field that Coterie does not have",
            ])
        #expect(
            errors(container("imagePullPolicy: Always")) == [
                "f:9:7: spec.containers[0].imagePullPolicy: a Kubernetes field that Coterie does not have"
            ])
        #expect(
            errors(spec("volumes:\n  - name: v\n    nfs: {server: s}")) == [
                "f:8:7: spec.volumes[0].nfs: a Kubernetes field that Coterie does not have"
            ])
    }

    @Test func fieldsAtTheWrongLevelAreSentHome() {
        #expect(
            errors(container("restartPolicy: Never")) == [
                "f:9:7: spec.containers[0].restartPolicy: a Kubernetes field that Coterie does not have (restartPolicy belongs in spec)"
            ])
        #expect(
            errors(container("volumes: []")) == [
                "f:9:7: spec.containers[0].volumes: unknown field (volumes belongs in spec)"
            ])
        #expect(
            errors(
                "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nlabels: {}\nspec: {containers: [{name: c, image: i}]}")
                == [
                    "f:4:1: labels: unknown field (labels belongs in metadata)"
                ])
    }

    @Test func duplicateKeysAreFoundAtEveryLevel() {
        #expect(
            errors(container("image: other\nenv:\n  - {name: A, name: B}")) == [
                "f:9:7: spec.containers[0].image: duplicate key (first given in line 8)",
                "f:11:21: spec.containers[0].env[0].name: duplicate key (first given in line 11)",
            ])
    }

    @Test func missingFieldsAreNamed() {
        #expect(
            errors("apiVersion: v1\nkind: Pod\nmetadata: {}\nspec:\n  containers:\n    - name: c") == [
                "f:3:11: metadata.name: required field is missing",
                "f:6:7: spec.containers[0].image: required field is missing",
            ])
        #expect(
            errors("kind: Pod") == [
                "f:1:1: apiVersion: required field is missing",
                "f:1:1: metadata: required field is missing",
                "f:1:1: spec: required field is missing",
            ])
    }

    @Test func wrongTypesSayWhatWasFound() {
        #expect(
            errors(container("command: run\nargs: [sleep, 5, true, ~]\nenv: {A: b}")) == [
                "f:9:16: spec.containers[0].command: expected a list, found \"run\"",
                "f:10:21: spec.containers[0].args[1]: expected a string, found the number 5 (quote it: \"5\")",
                "f:10:24: spec.containers[0].args[2]: expected a string, found the boolean true (quote it: \"true\")",
                "f:10:30: spec.containers[0].args[3]: has no value (give it one or leave the field out; a string is expected)",
                "f:11:12: spec.containers[0].env: expected a list, found a mapping",
            ])
        #expect(
            errors(spec("hostNetwork: yes\nactiveDeadlineSeconds: \"5\"\nterminationGracePeriodSeconds: 0x10")) == [
                "f:6:16: spec.hostNetwork: expected true or false, found the bare word yes (write true or false)",
                "f:7:26: spec.activeDeadlineSeconds: expected an integer from 1 to 3153600000, found \"5\" (remove the quotes)",
                "f:8:34: spec.terminationGracePeriodSeconds: expected an integer from 0 to 86400, found the "
                    + "number 0x10 (write it in decimal)",
            ])
        #expect(
            errors(container("env:\n  - {name: A, value: on}")) == [
                "f:10:28: spec.containers[0].env[0].value: expected a string, found the bare word on (quote it: \"on\")"
            ])
        #expect(
            errors(spec("volumes:")) == [
                "f:6:11: spec.volumes: has no value (give it one or leave the field out; a list is expected)"
            ])
    }

    @Test func badChoicesAndRangesAreNamed() {
        #expect(
            errors(spec("restartPolicy: Allways\nterminationGracePeriodSeconds: -1")) == [
                "f:6:18: spec.restartPolicy: expected one of Always, OnFailure, Never, found \"Allways\" (did you mean Always?)",
                "f:7:34: spec.terminationGracePeriodSeconds: expected an integer from 0 to 86400, found the number -1",
            ])
        #expect(
            errors(container("ports:\n  - {containerPort: 70000}\n  - {containerPort: 53, protocol: UDP}")) == [
                "f:10:27: spec.containers[0].ports[0].containerPort: expected an integer from 1 to 65535, found the number 70000",
                "f:11:41: spec.containers[0].ports[1].protocol: UDP is known to Kubernetes, but Coterie does not have it (expected TCP)",
            ])
    }

    @Test func namesAreChecked() {
        #expect(
            errors(
                "apiVersion: v1\nkind: Pod\nmetadata: {name: My_Pod, namespace: prod}\nspec: {containers: [{name: c.d, image: i}]}"
            ) == [
                "f:3:18: metadata.name: \"My_Pod\" is not a valid name (lower-case letters, digits, '-' and "
                    + "'.', at most 200, a letter or digit at both ends)",
                "f:3:37: metadata.namespace: expected default, found \"prod\"",
                "f:4:28: spec.containers[0].name: \"c.d\" is not a valid name (lower-case letters, digits and "
                    + "'-', at most 63, a letter or digit at both ends)",
            ])
        #expect(
            errors(container("env:\n  - {name: 1A}")).first?.hasPrefix(
                "f:10:18: spec.containers[0].env[0].name: \"1A\" is not a valid variable name") == true)
    }

    @Test func kindsAndVersionsAreChecked() {
        #expect(errors("apiVersion: v1\nkind: Podd") == ["f:2:7: kind: unknown kind \"Podd\" (did you mean Pod?)"])
        #expect(
            errors("apiVersion: apps/v1\nkind: StatefulSet") == [
                "f:2:7: kind: StatefulSet is a Kubernetes kind that Coterie does not have"
            ])
        #expect(
            errors("apiVersion: v1\nkind: Service") == [
                "f:2:7: kind: kind Service is not supported yet (ambassadors find pods by name)"
            ])
        #expect(
            errors("apiVersion: v1beta1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}")
                == [
                    "f:1:13: apiVersion: expected v1, found \"v1beta1\""
                ])
        #expect(errors("- a") == ["f:1:1: expected an object with apiVersion and kind, found a list"])
        #expect(errors("metadata: {}") == ["f:1:1: kind: required field is missing"])
    }

    @Test func errorsOfAllDocumentsComeAtOnceInTheOrderOfTheFile() {
        let text = spec("foo: 1") + "\n---\n" + spec("bar: 2").replacing("name: p", with: "name: q")
        #expect(errors(text) == ["f:6:3: spec.foo: unknown field", "f:15:3: spec.bar: unknown field"])
    }

    @Test func pathsQuoteKeysThatAreNotWords() {
        #expect(
            errors(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  labels: {app.kubernetes.io/name: 5}\nspec: "
                    + "{containers: [{name: c, image: i}]}"
            ) == [
                "f:5:36: metadata.labels['app.kubernetes.io/name']: expected a string, found the number 5 (quote it: \"5\")"
            ])
    }

    @Test func escapedNULsDoNotReachPrograms() {
        #expect(
            errors(container("command: [\"a\\0b\"]")) == [
                "f:9:17: spec.containers[0].command[0]: a string may not hold a NUL"
            ])
    }
}
