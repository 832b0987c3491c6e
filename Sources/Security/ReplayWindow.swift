// Which counters of one sender have been seen: a sliding bitmap (RFC 6479), so that reordering within the window is
// harmless and nothing is taken twice.

/// Bounded: ``size`` counters back from the highest one seen; older ones are refused because nothing is known of them.
struct ReplayWindow: Sendable {
    /// Counters back from the highest that are told apart.
    static let size: UInt64 = 1_024
    /// A ring with at least one word more than the window, so that advancing clears whole words only.
    private static let words: UInt64 = 32

    private var bits: [UInt64] = []
    private var highest: UInt64 = 0

    /// True if `counter` is new and recent enough. Nothing is changed: a forged datagram must not move the window.
    func admits(_ counter: UInt64) -> Bool {
        guard !bits.isEmpty, counter <= highest else { return true }
        guard highest - counter < ReplayWindow.size else { return false }
        return bits[Int((counter >> 6) % ReplayWindow.words)] & (1 << (counter & 63)) == 0
    }

    /// Remembers an authentic counter that ``admits(_:)`` has let through.
    mutating func remember(_ counter: UInt64) {
        if bits.isEmpty {
            bits = [UInt64](repeating: 0, count: Int(ReplayWindow.words))
            highest = counter
        } else if counter > highest {
            let steps = min((counter >> 6) - (highest >> 6), ReplayWindow.words)
            for step in 0..<steps { bits[Int(((counter >> 6) - step) % ReplayWindow.words)] = 0 }
            highest = counter
        }
        bits[Int((counter >> 6) % ReplayWindow.words)] |= 1 << (counter & 63)
    }
}
