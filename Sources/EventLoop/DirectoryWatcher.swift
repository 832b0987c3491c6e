import CUV

/// Tells that something in a directory may have changed. A hint: events can be lost (libuv drops an overflow), doubled and
/// late, so that a watcher scans as well, at its start and now and then.
public final class DirectoryWatcher: LoopHandleOwner {
    private let box: HandleBox<uv_fs_event_t, DirectoryWatcher>
    private var onEvent: ((String?) -> Void)?

    /// `onEvent` gets the name inside the directory, or nil.
    public init(loop: EventLoop, path: String, _ onEvent: @escaping (String?) -> Void) throws(UVError) {
        self.onEvent = onEvent
        box = try HandleBox(loop) { uv_fs_event_init($0, $1) }
        box.attach(self)
        let status = uv_fs_event_start(
            box.raw,
            { handle, name, _, _ in
                HandleBox<uv_fs_event_t, DirectoryWatcher>.owner(handle)?.onEvent?(name.map { String(cString: $0) })
            }, path, 0)
        guard status >= 0 else {
            box.close()
            throw UVError(code: status)
        }
    }

    /// No call-back any more.
    public func close() {
        onEvent = nil
        box.close()
    }
}
