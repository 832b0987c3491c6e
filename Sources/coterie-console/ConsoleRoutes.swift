// The paths of DESIGN 3.3: health, metrics, documents as JSON, events as a stream, and one page.
import HTTPTypes
import Hummingbird
import Model
import Wire

struct ConsoleRoutes: Sendable {
    let bridge: ClusterBridge
    let listen: SocketAddress

    var router: Router<BasicRequestContext> {
        let router = Router()
        router.add(middleware: HostCheck(listen: listen))
        router.get("/healthz") { _, _ in await health("version", deadline: .seconds(1)) }
        router.get("/readyz") { _, _ in await ready() }
        router.get("/metrics") { _, _ in await metrics() }
        for path in ["status", "members", "leader", "version", "queues", "gathers", "pods", "elections"] {
            router.get(RouterPath("/v1/" + path)) { _, _ in await document(path) }
        }
        for path in ["queues", "gathers", "pods", "elections"] {
            router.get(RouterPath("/v1/\(path)/{name}")) { _, context in
                await document(path + "/" + escaped(context.parameters.get("name", as: String.self) ?? ""))
            }
        }
        router.get("/v1/pods/{name}/logs") { request, context in
            var path = "logs/" + escaped(context.parameters.get("name", as: String.self) ?? "")
            path += "?tail=" + String(request.uri.queryParameters.get("tail", as: Int.self) ?? 500)
            if let container = request.uri.queryParameters["container"] {
                path += "&container=" + escaped(String(container))
            }
            return await logs(path)
        }
        router.get("/v1/events") { request, _ in events(request) }
        router.get("/") { _, _ in
            text(Page.html, type: "text/html; charset=utf-8")
        }
        return router
    }

    // MARK: - Answers

    private func text(_ body: String, type: String, status: HTTPResponse.Status = .ok) -> Response {
        var headers = HTTPFields()
        headers[.contentType] = type
        headers[.cacheControl] = "no-store"
        headers[.xContentTypeOptions] = "nosniff"
        if let policy = HTTPField.Name("Content-Security-Policy") {
            headers[policy] =
                "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        }
        return Response(status: status, headers: headers, body: .init(byteBuffer: ByteBuffer(string: body)))
    }

    private func json(_ value: JSONValue, status: HTTPResponse.Status = .ok) -> Response {
        text(value.text() + "\n", type: "application/json", status: status)
    }

    private func failure(_ error: any Error) -> Response {
        let known = error as? CoterieError ?? CoterieError(.failed, "\(error)")
        let status: HTTPResponse.Status =
            switch known.code {
            case .notFound: .notFound
            case .badInput, .tooLarge: .badRequest
            case .notAllowed: .forbidden
            case .noCluster, .noLeader, .unavailable, .busy: .serviceUnavailable
            case .deadline, .outcomeUnknown: .gatewayTimeout
            case .failed, .partial, .conflict, .interrupted: .internalServerError
            }
        let body: JSONValue = [
            "error": [
                "code": .string(known.code.rawValue), "message": .string(known.message), "hint": JSONValue(known.hint),
            ]
        ]
        return json(body, status: status)
    }

    private func document(_ path: String) async -> Response {
        do { return json(try await bridge.query(path)) } catch { return failure(error) }
    }

    private func health(_ path: String, deadline: TimeSpan) async -> Response {
        do {
            _ = try await bridge.query(path, deadline: deadline)
            return text("ok\n", type: "text/plain")
        } catch {
            return text("the agent does not answer: \(error)\n", type: "text/plain", status: .serviceUnavailable)
        }
    }

    /// Ready: the agent answers and knows a leader.
    private func ready() async -> Response {
        do {
            let status = try await bridge.query("status", deadline: .seconds(1))
            guard let leader = status["leader"], !leader.isNull else {
                return text("no leader\n", type: "text/plain", status: .serviceUnavailable)
            }
            return text("ok\n", type: "text/plain")
        } catch {
            return text("the agent does not answer: \(error)\n", type: "text/plain", status: .serviceUnavailable)
        }
    }

    private func metrics() async -> Response {
        do {
            let status = try await bridge.query("status")
            let raft = try await bridge.query("raft")
            let node = try await bridge.query("metrics")
            return text(
                Metrics.text(status: status, raft: raft, node: node), type: "text/plain; version=0.0.4; charset=utf-8")
        } catch {
            return failure(error)
        }
    }

    private func logs(_ path: String) async -> Response {
        var out = ""
        do {
            for try await line in bridge.watch(path) {
                out += (line["time"]?.stringValue ?? "") + " " + (line["stream"]?.stringValue ?? "") + " "
                out += (line["text"]?.stringValue ?? "") + "\n"
            }
            return text(out, type: "text/plain; charset=utf-8")
        } catch {
            return failure(error)
        }
    }

    /// Server-sent events; `Last-Event-ID` or `?after=` resumes.
    private func events(_ request: Request) -> Response {
        var after: UInt64 = 0
        if let name = HTTPField.Name("Last-Event-ID"), let last = request.headers[name].flatMap({ UInt64($0) }) {
            after = last
        }
        if let given = request.uri.queryParameters.get("after", as: UInt64.self) { after = given }
        let stream = bridge.watch("events?follow=1&after=\(after)")
        var headers = HTTPFields()
        headers[.contentType] = "text/event-stream"
        headers[.cacheControl] = "no-store"
        return Response(
            status: .ok, headers: headers,
            body: .init { writer in
                do {
                    for try await event in stream {
                        let index = event["index"]?.intValue ?? 0
                        let kind = event["kind"]?.stringValue ?? "event"
                        try await writer.write(
                            ByteBuffer(string: "id: \(index)\nevent: \(kind)\ndata: \(event.text())\n\n"))
                    }
                } catch let error as CoterieError {
                    try await writer.write(
                        ByteBuffer(string: "event: end\ndata: \(JSONValue.string(error.message).text())\n\n"))
                }
                try await writer.finish(nil)
            })
    }
}

/// A web page elsewhere can make a browser ask localhost under another name (DNS rebinding): only our own names are served.
struct HostCheck: RouterMiddleware {
    typealias Context = BasicRequestContext
    let listen: SocketAddress

    func handle(
        _ request: Request, context: BasicRequestContext, next: (Request, BasicRequestContext) async throws -> Response
    ) async throws -> Response {
        let allowed = ["localhost", "127.0.0.1", "[::1]", listen.hostText]
        let host = request.head.authority ?? ""
        let name = host.hasPrefix("[") ? String(host.prefix { $0 != "]" }) + "]" : String(host.prefix { $0 != ":" })
        guard allowed.contains(name) else {
            return Response(
                status: .forbidden,
                body: .init(byteBuffer: ByteBuffer(string: "this console answers on localhost only\n")))
        }
        return try await next(request, context)
    }
}

/// For one segment of a path: everything but letters, digits and `-._~`.
func escaped(_ text: String) -> String {
    var out = ""
    let digits = Array("0123456789ABCDEF")
    for byte in text.utf8 {
        let isPlain =
            (byte | 32 >= 97 && byte | 32 <= 122) || (byte >= 48 && byte <= 57) || byte == 45 || byte == 46
            || byte == 95 || byte == 126
        if isPlain {
            out.unicodeScalars.append(Unicode.Scalar(byte))
        } else {
            out += "%" + String(digits[Int(byte >> 4)]) + String(digits[Int(byte & 15)])
        }
    }
    return out
}
