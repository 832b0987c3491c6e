// Calls and answers as EDN: `:f`, and `:value` of the call and of the answer. The words of registers and texts are those of
// Jepsen and porcupine, those of leases and jobs are our own.
//
//     object      :f        value of the call                       value of the answer
//     register    read      nil                                     number or nil
//                 write     number                                  the same
//                 cas       [from to]                               the same; :fail = found something else
//     text        get       nil                                     text
//                 put       text                                    the same
//                 append    text                                    the same
//     lease       acquire   {:holder text, :ttl ms}                 {:granted token} or {:held token, :holder text}
//                 renew     {:token t, :ttl ms}                     :renewed or {:lost newest}
//                 release   {:token t}                              :released or {:lost newest}
//                 inspect   nil                                     {:token newest, :holder text or nil}
//     jobs        insert    [[job delay-ms ttr-ms] …]               {:ids [id …]}
//                 reserve   {:tubes [text …], :count n}             {:taken [[job id lease] …]}
//                 delete    {:job j, :lease l}                      :done, :not-found, :lease-expired
//                 give-back {:job j, :lease l, :delay ms}           the same, and :buried
//                 touch     {:job j, :lease l}                      the same
//                 look      {:job j}                                the same

extension HistoryCall {
    /// Of the object; empty for jobs, which are named in the value.
    var key: String {
        switch self {
        case .register(let key, _), .text(let key, _), .lease(let key, _): key
        case .jobs: "jobs"
        }
    }

    /// `:f` and the value.
    var words: (name: String, value: EDNValue) {
        switch self {
        case .register(_, .read): ("read", .null)
        case .register(_, .write(let value)): ("write", .int(value))
        case .register(_, .compareAndSet(let from, let to)): ("cas", .vector([.int(from), .int(to)]))
        case .text(_, .get): ("get", .null)
        case .text(_, .put(let text)): ("put", .string(text))
        case .text(_, .append(let text)): ("append", .string(text))
        case .lease(_, .acquire(let holder, let ttl)):
            ("acquire", .fields(["holder": .string(holder), "ttl": .number(ttl)]))
        case .lease(_, .renew(let token, let ttl)): ("renew", .fields(["token": .number(token), "ttl": .number(ttl)]))
        case .lease(_, .release(let token)): ("release", .fields(["token": .number(token)]))
        case .lease(_, .inspect): ("inspect", .null)
        case .jobs(.put(let puts)):
            (
                "insert",
                .vector(
                    puts.map {
                        .vector([.number($0.job), .number($0.delayMilliseconds), .number($0.ttrMilliseconds)])
                    })
            )
        case .jobs(.reserve(let tubes, let count)):
            ("reserve", .fields(["tubes": .vector(tubes.map { .string($0) }), "count": .int(Int64(count))]))
        case .jobs(.delete(let job, let lease)):
            ("delete", .fields(["job": .number(job), "lease": .number(lease)]))
        case .jobs(.release(let job, let lease, let delay)):
            ("give-back", .fields(["job": .number(job), "lease": .number(lease), "delay": .number(delay)]))
        case .jobs(.touch(let job, let lease)): ("touch", .fields(["job": .number(job), "lease": .number(lease)]))
        case .jobs(.look(let job)): ("look", .fields(["job": .number(job)]))
        }
    }

    /// Nil if these are not the words of a call.
    init?(name: String, key: String, value: EDNValue) {
        switch name {
        case "read": self = .register(key: key, .read)
        case "write":
            guard let number = value.int else { return nil }
            self = .register(key: key, .write(number))
        case "cas":
            guard let pair = value.vector, pair.count == 2, let from = pair[0].int, let to = pair[1].int else {
                return nil
            }
            self = .register(key: key, .compareAndSet(from: from, to: to))
        case "get": self = .text(key: key, .get)
        case "put":
            guard let text = value.string else { return nil }
            self = .text(key: key, .put(text))
        case "append":
            guard let text = value.string else { return nil }
            self = .text(key: key, .append(text))
        case "acquire":
            guard let holder = value["holder"]?.string, let ttl = value["ttl"]?.unsigned else { return nil }
            self = .lease(key: key, .acquire(holder: holder, ttlMilliseconds: ttl))
        case "renew":
            guard let token = value["token"]?.unsigned, let ttl = value["ttl"]?.unsigned else { return nil }
            self = .lease(key: key, .renew(token: token, ttlMilliseconds: ttl))
        case "release":
            guard let token = value["token"]?.unsigned else { return nil }
            self = .lease(key: key, .release(token: token))
        case "inspect": self = .lease(key: key, .inspect)
        default:
            guard let call = JobCall(name: name, value: value) else { return nil }
            self = .jobs(call)
        }
    }
}

extension HistoryCall.JobCall {
    fileprivate init?(name: String, value: EDNValue) {
        switch name {
        case "insert":
            guard let items = value.vector else { return nil }
            var puts: [HistoryCall.Put] = []
            for item in items {
                guard let parts = item.vector, parts.count == 3, let job = parts[0].unsigned,
                    let delay = parts[1].unsigned, let ttr = parts[2].unsigned
                else { return nil }
                puts.append(HistoryCall.Put(job: job, delayMilliseconds: delay, ttrMilliseconds: ttr))
            }
            self = .put(puts)
        case "reserve":
            guard let tubes = value["tubes"]?.vector, let count = value["count"]?.int else { return nil }
            self = .reserve(tubes: tubes.compactMap(\.string), count: Int(count))
        case "delete", "give-back", "touch":
            guard let job = value["job"]?.unsigned, let lease = value["lease"]?.unsigned else { return nil }
            switch name {
            case "delete": self = .delete(job: job, lease: lease)
            case "touch": self = .touch(job: job, lease: lease)
            default:
                guard let delay = value["delay"]?.unsigned else { return nil }
                self = .release(job: job, lease: lease, delayMilliseconds: delay)
            }
        case "look":
            guard let job = value["job"]?.unsigned else { return nil }
            self = .look(job: job)
        default: return nil
        }
    }
}

extension HistoryAnswer {
    /// The value; `call` gives it where an answer repeats what was asked.
    func value(of call: HistoryCall) -> EDNValue {
        switch self {
        case .register(.value(let value)): value.map { .int($0) } ?? .null
        case .register(.done), .register(.mismatch), .text(.done): call.words.value
        case .text(.text(let text)): .string(text)
        case .lease(.granted(let token)): .fields(["granted": .number(token)])
        case .lease(.held(let token, let holder)): .fields(["held": .number(token), "holder": .string(holder)])
        case .lease(.renewed): .keyword("renewed")
        case .lease(.released): .keyword("released")
        case .lease(.lost(let newest)): .fields(["lost": .number(newest)])
        case .lease(.state(let token, let holder)):
            .fields(["token": .number(token), "holder": holder.map { .string($0) } ?? .null])
        case .jobs(.inserted(let ids)): .fields(["ids": .vector(ids.map { .number($0) })])
        case .jobs(.reserved(let taken)):
            .fields([
                "taken": .vector(taken.map { .vector([.number($0.job), .number($0.id), .number($0.lease)]) })
            ])
        case .jobs(.plain(.done)): .keyword("done")
        case .jobs(.plain(.notFound)): .keyword("not-found")
        case .jobs(.plain(.leaseExpired)): .keyword("lease-expired")
        case .jobs(.plain(.buried)): .keyword("buried")
        }
    }

    /// The answer to `call`; nil if it is none.
    init?(to call: HistoryCall, value: EDNValue) {
        switch call {
        case .register(_, .read):
            guard value.int != nil || value == .null else { return nil }
            self = .register(.value(value.int))
        case .register: self = .register(.done)
        case .text(_, .get):
            guard let text = value.string else { return nil }
            self = .text(.text(text))
        case .text: self = .text(.done)
        case .lease(_, let input):
            guard let output = LeaseModel.Output(to: input, value: value) else { return nil }
            self = .lease(output)
        case .jobs(.put):
            guard let ids = value["ids"]?.vector else { return nil }
            self = .jobs(.inserted(ids.compactMap(\.unsigned)))
        case .jobs(.reserve):
            guard let items = value["taken"]?.vector else { return nil }
            var taken: [Reservation] = []
            for item in items {
                guard let parts = item.vector, parts.count == 3, let job = parts[0].unsigned,
                    let id = parts[1].unsigned, let lease = parts[2].unsigned
                else { return nil }
                taken.append(Reservation(job: job, id: id, lease: lease))
            }
            self = .jobs(.reserved(taken))
        case .jobs:
            switch value.keyword {
            case "done": self = .jobs(.plain(.done))
            case "not-found": self = .jobs(.plain(.notFound))
            case "lease-expired": self = .jobs(.plain(.leaseExpired))
            case "buried": self = .jobs(.plain(.buried))
            default: return nil
            }
        }
    }
}

extension LeaseModel.Output {
    fileprivate init?(to input: LeaseModel.Input, value: EDNValue) {
        if let newest = value["lost"]?.unsigned {
            self = .lost(newest: newest)
        } else if let token = value["granted"]?.unsigned {
            self = .granted(token: token)
        } else if let token = value["held"]?.unsigned, let holder = value["holder"]?.string {
            self = .held(token: token, holder: holder)
        } else if value.keyword == "renewed" {
            self = .renewed
        } else if value.keyword == "released" {
            self = .released
        } else if case .inspect = input, let token = value["token"]?.unsigned {
            self = .state(token: token, holder: value["holder"]?.string)
        } else {
            return nil
        }
    }
}
