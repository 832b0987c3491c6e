// The first page: who is there, who leads, what waits. One file, nothing loaded from elsewhere.
enum Page {
    static let html = #"""
        <!doctype html>
        <html lang="en"><head><meta charset="utf-8"><title>Coterie</title>
        <meta name="viewport" content="width=device-width, initial-scale=1">
        <style>
        :root { color-scheme: light dark; --line: #8884; --good: #2a8f4f; --bad: #c0392b; --warn: #b9770e; }
        body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
        h1 { font-size: 1.4rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
        p.sub { margin: 0; opacity: .7; }
        table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); }
        th { font-weight: 600; opacity: .7; } td.n { font-variant-numeric: tabular-nums; }
        .alive, .Running, .Succeeded, .succeeded { color: var(--good); } .dead, .Failed, .failed { color: var(--bad); }
        .suspect, .Pending, .partial { color: var(--warn); } .left { opacity: .6; }
        .cards { display: flex; gap: 1rem; flex-wrap: wrap; margin-top: 1rem; }
        .card { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; min-width: 8rem; }
        .card b { display: block; font-size: 1.3rem; } .empty { opacity: .6; }
        #error { color: var(--bad); } code, .mono { font-family: ui-monospace, monospace; font-size: .9em; }
        </style></head><body>
        <h1 id="title">Coterie</h1><p class="sub" id="sub">…</p><p id="error" role="alert"></p>
        <div class="cards" id="cards"></div>
        <h2>Members</h2><table id="members"></table>
        <h2>Queues</h2><table id="queues"></table>
        <h2>Pods</h2><table id="pods"></table>
        <h2>Gathers</h2><table id="gathers"></table>
        <h2>Elections</h2><table id="elections"></table>
        <h2>Events</h2><table id="events"></table>
        <script>
        const get = async p => { const r = await fetch('/v1/' + p); const d = await r.json(); if (!r.ok) throw new Error(d.error.message); return d; };
        const cell = (v, c) => { const t = document.createElement('td'); t.textContent = v ?? ''; if (c) t.className = c; return t; };
        function table(id, heads, rows) {
          const t = document.getElementById(id); t.replaceChildren();
          if (!rows.length) { const r = t.insertRow(); r.append(cell('none', 'empty')); return; }
          const h = t.insertRow(); for (const x of heads) { const e = document.createElement('th'); e.textContent = x; h.append(e); }
          for (const row of rows) { const r = t.insertRow(); for (const [v, c] of row) r.append(cell(v, c)); }
        }
        function cards(list) {
          const box = document.getElementById('cards'); box.replaceChildren();
          for (const [name, value] of list) { const d = document.createElement('div'); d.className = 'card';
            const b = document.createElement('b'); b.textContent = value; d.append(b, name); box.append(d); }
        }
        async function refresh() {
          try {
            const [s, m, q, p, g, e] = await Promise.all(['status', 'members', 'queues', 'pods', 'gathers', 'elections'].map(get));
            document.getElementById('title').textContent = 'Coterie: ' + s.cluster.name;
            document.getElementById('sub').textContent = `seen by ${s.node.name} (${s.node.role}) · leader ${s.leader ? s.leader.name : 'none'} · term ${s.term} · committed ${s.commitIndex} · version ${s.version}`;
            cards([['members alive', s.members.alive], ['suspect or dead', s.members.suspect + s.members.dead], ['jobs ready', s.queues.ready], ['jobs reserved', s.queues.reserved], ['pods running', s.pods.running]]);
            table('members', ['name', 'state', 'role', 'address', 'round trip'], m.members.map(x => [[x.name], [x.state, x.state], [x.role], [x.address, 'mono'], [x.rttMilliseconds == null ? '' : x.rttMilliseconds.toFixed(2) + ' ms', 'n']]));
            table('queues', ['tube', 'ready', 'reserved', 'delayed', 'buried', 'waiting'], q.tubes.map(x => [[x.name], [x.ready, 'n'], [x.reserved, 'n'], [x.delayed, 'n'], [x.buried, 'n'], [x.waiting, 'n']]));
            table('pods', ['name', 'phase', 'node', 'containers', 'reason'], p.items.map(x => [[x.metadata.name], [x.status.phase, x.status.phase], [x.spec.nodeName || ''], [(x.status.containerStatuses || []).map(c => c.name + (c.ready ? '' : ' (not ready)')).join(', ')], [x.status.reason || '']]));
            table('gathers', ['id', 'state', 'shards', 'done', 'retried', 'hedged'], g.gathers.map(x => [[x.id, 'mono'], [x.state, x.state], [x.shards.total, 'n'], [x.shards.successful, 'n'], [x.retried, 'n'], [x.hedged, 'n']]));
            table('elections', ['name', 'holder', 'token'], (e.elections || []).map(x => [[x.name], [x.holder ? (x.holder.pod || x.holder.id) : 'nobody'], [x.token, 'n']]));
            document.getElementById('error').textContent = '';
          } catch (x) { document.getElementById('error').textContent = x.message; }
        }
        const recent = [];
        const source = new EventSource('/v1/events');
        function heard(x) { const e = JSON.parse(x.data); recent.unshift(e); recent.length = Math.min(recent.length, 25);
          table('events', ['time', 'kind', 'subject'], recent.map(y => [[y.time.slice(11, 23), 'mono'], [y.kind], [y.subject.name || y.subject.leader || y.subject.id || JSON.stringify(y.subject)]])); }
        for (const k of ['member.join', 'member.suspect', 'member.alive', 'member.dead', 'member.leave', 'leader.change', 'voter.change', 'pod.change', 'gather.change', 'election.change']) source.addEventListener(k, heard);
        refresh(); setInterval(refresh, 2000);
        </script></body></html>
        """#
}
