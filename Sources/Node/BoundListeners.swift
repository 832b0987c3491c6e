// All sockets of a node, bound before anything else is touched: a port in use is found out while nothing is half done.
import EventLoop
import Model

struct BoundListeners {
    let udp: UDPSocket
    let streams: Listener
    let local: Listener
    let queue: Listener?
    /// Gossip and streams share one port.
    let address: SocketAddress
    let queueAddress: SocketAddress?

    init(loop: EventLoop, options: AgentOptions, directory: DataDirectory) throws(CoterieError) {
        func failed(_ what: String, _ address: SocketAddress, _ error: UVError) -> CoterieError {
            CoterieError(
                error.name == "EADDRINUSE" ? .conflict : .failed, "cannot bind \(what) \(address): \(error)",
                hint: error.name == "EADDRINUSE"
                    ? "another process has the port; choose another address, or port 0" : nil)
        }
        // With port 0 the kernel picks a TCP port; the same number must be free for UDP, so a few are tried.
        var attempts = 0
        var pair: (UDPSocket, Listener, SocketAddress)?
        while pair == nil {
            attempts += 1
            let listener: Listener
            do throws(UVError) { listener = try Listener(loop: loop, bind: options.bind) } catch {
                throw failed("the stream port", options.bind, error)
            }
            var address = options.bind
            address.port = listener.localAddress?.port ?? options.bind.port
            do throws(UVError) {
                pair = (try UDPSocket(loop: loop, bind: address), listener, address)
            } catch {
                listener.close()
                guard options.bind.port == 0, attempts < 16 else { throw failed("the gossip port", address, error) }
            }
        }
        guard let (udp, streams, address) = pair else { throw CoterieError(.failed, "no port could be bound") }
        self.udp = udp
        self.streams = streams
        self.address = address
        let socketAddress = SocketAddress(host: .unix(path: directory.socketPath), port: 0)
        do throws(UVError) {
            local = try Listener(loop: loop, bind: socketAddress, mode: 0o600)
        } catch {
            udp.close()
            streams.close()
            throw failed("the local socket", socketAddress, error)
        }
        switch options.queue {
        case .off:
            queue = nil
            queueAddress = nil
        case .at(let wanted):
            do throws(UVError) {
                let listener = try Listener(loop: loop, bind: wanted)
                queue = listener
                queueAddress = listener.localAddress ?? wanted
            } catch {
                udp.close()
                streams.close()
                local.close()
                throw failed("the queue port", wanted, error)
            }
        }
    }
}
