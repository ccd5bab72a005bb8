"""Faults that `run` puts into src/bus, one at a time, to see that the simulation of a cluster notices each.

`find` must occur exactly once in the file; `put` takes its place. `blind` mutations were written by reading src/bus alone,
before its tests were looked at: they say more about the tests than those that were written with the tests in mind.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    name: str
    what: str  # in plain words
    file: str  # below src/bus
    find: str
    put: str
    blind: bool = False
    kinds: tuple[str, ...] = ()  # of the simulation: they run first
    seeds: int = 0  # of these kinds, if it shows more rarely than the others


def every(count):
    """Rust: true each `count`th time. One counter for the whole process."""
    atomic = "std::sync::atomic"
    return (
        f"{{ static TIMES: {atomic}::AtomicU64 = {atomic}::AtomicU64::new(1); "
        f"TIMES.fetch_add(1, {atomic}::Ordering::Relaxed) % {count} == 0 }}"
    )


def blind(*fields, **more):
    return Mutation(*fields, blind=True, **more)


# Kinds of the simulation that notice most; they run first.
KINDS_FIRST = [
    "one_user_is_on_many_nodes_and_connections_break",
    "many_users_move_and_connections_break",
    "one_user_moves_and_processes_are_killed",
    "with_everything_and_failovers",
    "one_user_is_on_many_nodes_and_processes_are_killed",
    "flush",
    "full_links_and_envelopes_get_lost",
]


MUTATIONS = [
    # Delivering once, and in order.
    blind(
        "doubles-delivered",
        "a holder delivers what it has had before",
        "directory.rs",
        "let is_new = stamp.place > *last;",
        "let is_new = true;",
    ),
    blind(
        "items-swapped",
        "now and then two neighbouring items of an envelope change places",
        "inbound.rs",
        "let item = if *left > 0 { wire::take_item(items) } else { None };",
        "let mut item = if *left > 0 { wire::take_item(items) } else { None };\n"
        f"        if *left > 1 && {every(5)} && let Some(second) = wire::take_item(items) {{\n"
        "            self.waiting = item.replace(second);\n"
        "            *left -= 1;\n"
        "        }",
    ),
    blind(
        "queue-sent-backwards",
        "a queue that goes to its relay goes with the newest message first",
        "outgoing.rs",
        "for Outgoing { place, frame, .. } in waiting.drain(..) {\n                self.counters.unicasts_out += 1;",
        "for Outgoing { place, frame, .. } in waiting.drain(..).rev() {\n                self.counters.unicasts_out += 1;",
    ),
    blind(
        "memory-lost-with-own-life",
        "a node that takes a new life forgets what it has delivered",
        "directory.rs",
        "        self.pending = None;\n        self.is_reading = false;\n        self.sure_since = 0;",
        "        self.pending = None;\n        self.last.clear();\n        self.is_reading = false;\n        self.sure_since = 0;",
    ),
    blind(
        "processes-confused",
        "messages of a node's next process count as those of the process before",
        "peers.rs",
        "        *self.origins.entry((peer, process)).or_insert_with(|| {",
        "        *self.origins.entry((peer, 0)).or_insert_with(|| {",
    ),
    blind(
        "overtaken-by-kept",
        "when a user opens, what this node has said to the user comes after what the home has kept, which was said later",
        "holding.rs",
        "            self.relay_own(slot, user, time, true, fx);\n"
        "        }\n"
        "        self.tell(home, FromBus::Registered { user: user.clone(), elsewhere }, fx);",
        "            _ = time;\n"
        "        }\n"
        "        self.tell(home, FromBus::Registered { user: user.clone(), elsewhere }, fx);\n"
        "        if let Some(slot) = self.routes.busy_slot_of(user) {\n"
        "            self.send_waiting(slot, fx);\n"
        "        }",
    ),
    # Pushing to all other holders.
    blind(
        "push-dropped-sometimes",
        "now and then a push is forgotten",
        "relay.rs",
        "            self.counters.unicasts_out += 1;\n            self.deliveries.wait(receipt);",
        f"            if {every(5)} {{\n                continue;\n            }}\n"
        "            self.counters.unicasts_out += 1;\n            self.deliveries.wait(receipt);",
    ),
    blind(
        "push-dropped-for-one",
        "of several other holders the last one is never pushed to",
        "relay.rs",
        "for other in others.iter().filter(|other| self.peers.is_present(other.peer, other.life)).collect::<Vec<_>>() {",
        "for other in others.iter().take(others.len().max(2) - 1)"
        ".filter(|other| self.peers.is_present(other.peer, other.life)).collect::<Vec<_>>() {",
    ),
    blind(
        "unsure-believed",
        "after a cut the other holders count as known, though somebody may have begun to hold the user meanwhile",
        "directory.rs",
        "self.sure_since == connection",
        "self.sure_since != 0 || connection == 0",
        kinds=("one_user_stays_and_little_works", "one_user_moves_and_connections_break", "with_connections_that_break"),
        seeds=300,
    ),
    blind(
        "kept-not-pushed",
        "what was delivered while the other holders were not sure is not pushed to those who turn out to be there",
        "relay.rs",
        "let missing: Vec<Target> = others.iter().filter(|other| !kept.was_pushed_to(other)).copied().collect();",
        "let missing: Vec<Target> = others.iter().copied().take(0).collect();",
        kinds=("one_user_stays_and_little_works",),
        seeds=60,
    ),
    blind(
        "others-replaced",
        "the list of other holders is what was read last, instead of growing by it",
        "holding.rs",
        "        let own = self.config.node_id.clone();\n"
        "        for holder in holders.iter().filter(|holder| holder.node != own) {\n"
        "            let Some(target) = self.peers.usable(holder) else { continue };\n"
        "            self.met(",
        "        let own = self.config.node_id.clone();\n"
        "        for known in self.directory.get(user).map_or(&[][..], Held::others).to_vec() {\n"
        "            let is_named = holders.iter().any(|holder| holder.node == *self.peers.node(known.peer));\n"
        "            if let Some(held) = self.directory.get_mut(user).filter(|_| !is_named) {\n"
        "                held.remove_other(known.peer, known.life, u64::MAX);\n"
        "            }\n"
        "        }\n"
        "        for holder in holders.iter().filter(|holder| holder.node != own) {\n"
        "            let Some(target) = self.peers.usable(holder) else { continue };\n"
        "            self.met(",
    ),
    # Opening.
    blind(
        "opened-unanswered",
        "a user's connections open before the other holders have answered",
        "holding.rs",
        "held.stage() == HeldStage::Joining && held.is_wanted() && held.unanswered().next().is_none()",
        "held.stage() == HeldStage::Joining && held.is_wanted()",
    ),
    blind(
        "join-answered-unfenced",
        "a join is answered before the home has passed on what it delivered until then",
        "holding.rs",
        "        if !is_open {\n",
        "        if !is_open || true {\n",
    ),
    blind(
        "doubt-asks-nobody",
        "who registers while the directory is in doubt asks only the holders that it names",
        "holding.rs",
        "        if self.is_in_doubt(run) {\n            // Somebody may hold the user",
        "        if false && self.is_in_doubt(run) {\n            // Somebody may hold the user",
    ),
    blind(
        "registration-ignored",
        "a message that is meant for an earlier registration is taken by a later one",
        "directory.rs",
        "self.is_here() && self.first_op != 0 && op >= self.first_op",
        "self.is_here() && op < u64::MAX",
    ),
    blind(
        "early-push-not-early",
        "what another holder pushes before the connections are open waits behind them",
        "relay.rs",
        "let early = !held.is_open();",
        "let early = false && !held.is_open();",
    ),
    # Confirming.
    blind(
        "settled-before-pushes",
        "a relay settles a message although other holders have not acknowledged it",
        "relay.rs",
        "            self.deliveries.wait(receipt);\n            self.peers.push_copy(*other, &user.name, stamp, frame, receipt);",
        "            _ = receipt;\n            self.peers.push_copy(*other, &user.name, stamp, frame, 0);",
    ),
    blind(
        "settled-before-home",
        "a relay settles a message although the home has not handled it",
        "relay.rs",
        "            self.deliveries.expect(home, ticket, receipt);",
        "            _ = ticket;\n"
        "            match receipt {\n"
        "                Receipt::Home(source) => self.settle(source),\n"
        "                Receipt::Shared(receipt) => self.done(receipt),\n"
        "            }",
    ),
    blind(
        "double-confirmed-at-once",
        "a message that came twice is settled though the first one has not arrived",
        "relay.rs",
        "            self.deliveries.expect_double(home, user, receipt);",
        "            match receipt {\n"
        "                Receipt::Home(source) => self.settle(source),\n"
        "                Receipt::Shared(receipt) => self.done(receipt),\n"
        "            }",
    ),
    blind(
        "doubles-stay-when-user-leaves",
        "a message that came twice is settled although its user left before the first one arrived",
        "holding.rs",
        "for receipt in self.deliveries.doubles_of(self.home(user), user) {",
        "for receipt in self.deliveries.doubles_of(self.home(user), user).into_iter().take(0) {",
    ),
    blind(
        "early-confirmed-too-soon",
        "messages that the home keeps until the user opens count as arrived before it has opened",
        "holding.rs",
        "        self.deliveries.arrive_with_last(home, kept_from);\n",
        "        _ = kept_from;\n",
        kinds=("many_users_move_and_leave", "many_users_move_and_processes_stop", "full_links_and_connections_break"),
        seeds=300,
    ),
    blind(
        "acked-before-handled",
        "a link acknowledges items that wait for room",
        "link.rs",
        "            ack: self.handled,",
        "            ack: self.accepted,",
        kinds=("with_everything_at_once", "with_everything_and_failovers", "with_shards_that_lag", "one_user_moves_and_the_shards_lag"),
        seeds=200,
    ),
    blind(
        "untake-forgotten",
        "a message for which the home had no room counts as delivered",
        "relay.rs",
        "            held.untake(Stamp { origin: OriginId::SELF, place });",
        "            _ = (held, place);",
        kinds=("with_shards_that_lag", "one_user_moves_and_the_shards_lag", "many_users_move_and_leave"),
        seeds=200,
    ),
    # Going another way.
    blind(
        "returned-forgotten",
        "a message that a relay sends back is forgotten",
        "incoming.rs",
        "self.came_back(route, place, Relay::Peer(from));",
        "self.routes.settled(route, place, Relay::Peer(from));",
    ),
    blind(
        "returned-alone",
        "of a queue whose relay has sent a message back only that message goes to the next relay",
        "routes.rs",
        "let again = if before == Some(target) { 0 } else { self.wait_again(slot, |_| true) };",
        "let again = if before == Some(target) { 0 } else { 0 };",
    ),
    blind(
        "own-queue-not-taken-over",
        "when the origin begins to hold the user itself, only what was not sent yet goes to its own connections",
        "routes.rs",
        "    pub(super) fn go_own(&mut self, slot: usize) -> u32 {\n        self.wait_again(slot, |_| true);",
        "    pub(super) fn go_own(&mut self, slot: usize) -> u32 {\n        self.wait_again(slot, |_| false);",
    ),
    blind(
        "settled-by-anybody",
        "a message counts as arrived when a relay says so that is not the present one any more",
        "routes.rs",
        "let Some(at) = route.at(place).filter(|&at| route.queue[at].sent == Some(relay)) else { return };",
        "let Some(at) = route.at(place).filter(|&at| route.queue[at].sent == Some(relay) || true) else { return };",
        kinds=("with_everything_at_once", "one_user_moves_and_processes_are_killed", "many_users_move_and_leave", "flush"),
        seeds=200,
    ),
    blind(
        "nowhere-for-later-ones",
        "that the user is nowhere is believed of messages that came after the question",
        "routes.rs",
        "let dropped = self.drop_up_to(slot, asked);",
        "let dropped = self.drop_up_to(slot, asked.max(u64::MAX));",
        kinds=("with_a_slow_redis", "many_users_move_and_connections_break", "one_user_moves_with_a_slow_redis"),
        seeds=200,
    ),
    blind(
        "nowhere-in-doubt",
        "that the user is nowhere is believed while the directory is in doubt",
        "outgoing.rs",
        "        if self.is_in_doubt(location.run) {",
        "        if false && self.is_in_doubt(location.run) {",
    ),
    blind(
        "lost-with-relay",
        "what was sent to a relay that dies is not sent again",
        "incoming.rs",
        "if self.routes.is_sent_to(slot, peer) {",
        "if false && self.routes.is_sent_to(slot, peer) {",
    ),
    blind(
        "lost-with-own-life",
        "what was under way when this node takes a new life is not sent again",
        "incoming.rs",
        "        for &slot in &busy {\n            self.routes.lose_way(slot);\n        }\n",
        "",
    ),
    blind(
        "pushes-to-the-dead-awaited",
        "what was pushed to a holder that dies is never settled",
        "incoming.rs",
        "        ended.pushes.into_iter().for_each(|receipt| self.done(receipt));\n",
        "",
    ),
    # Lives and links.
    blind(
        "same-life-again",
        "a life that was begun is begun again: its links number from 1 once more",
        "members.rs",
        "if incarnation <= self.members.incarnation => {",
        "if incarnation < self.members.incarnation => {",
        kinds=("with_two_processes_of_one_name", "with_processes_that_do_not_run_for_a_while", "one_user_moves_and_processes_do_not_run", "with_everything_at_once", "with_everything_and_failovers"),
        seeds=200,
    ),
    blind(
        "links-not-begun-anew",
        "a node's links go on as they were when it takes a new life",
        "peers.rs",
        "        for id in self.ids() {\n            let fresh",
        "        for id in self.ids().take(0) {\n            let fresh",
    ),
    blind(
        "resent-handled-again",
        "items that come again because an acknowledgement was late are handled again",
        "link.rs",
        "        if end <= self.accepted + 1 {\n            return Accept::Nothing;\n        }\n"
        "        let skip = (self.accepted + 1 - header.first_seq) as u32;\n"
        "        self.accepted = end - 1;",
        "        let skip = 0;\n        self.accepted = self.accepted.max(end - 1);",
    ),
    blind(
        "sent-to-earlier-life-taken",
        "what a peer sends to an earlier life of this node is taken",
        "peers.rs",
        "        if header.to_incarnation != own_life {",
        "        if header.to_incarnation != own_life && header.to_incarnation == 0 {",
        kinds=("with_everything_and_failovers", "with_everything_at_once", "one_user_moves_and_processes_do_not_run", "with_processes_that_do_not_run_for_a_while"),
        seeds=200,
    ),
    blind(
        "broadcasts-doubled",
        "a broadcast that is repeated for a new life is delivered again",
        "peers.rs",
        "let is_new = place > peer.last_broadcast;",
        "let is_new = place > peer.last_broadcast || true;",
        kinds=("with_processes_that_do_not_run_for_a_while", "one_user_moves_and_processes_do_not_run", "with_everything_at_once", "with_everything_and_failovers"),
        seeds=200,
    ),
    blind(
        "broadcasts-not-repeated",
        "broadcasts that a life has not acknowledged are lost with it",
        "peers.rs",
        "for item in ended.broadcasts.iter().filter_map(Item::as_draft) {",
        "for item in ended.broadcasts.iter().filter_map(Item::as_draft).take(0) {",
        kinds=("with_everything_and_failovers", "with_everything_at_once", "one_user_moves_and_processes_do_not_run", "with_processes_that_do_not_run_for_a_while"),
        seeds=200,
    ),
    # What Redis has lost.
    blind(
        "lost-users-not-entered",
        "users whom Redis has lost are not entered again",
        "members.rs",
        "            self.restore_held(false, fx);",
        "            self.members.has_entered_all(self.now);",
    ),
    blind(
        "entered-before-users",
        "a node enters itself in the registry before its users are in the directory again",
        "members.rs",
        "            self.members.entered_run = None;",
        "            self.members.entered_run = Some(run.id);",
        kinds=("flush", "flush_and_connections_break", "flush_and_kills", "with_failovers_that_lose_data"),
        seeds=300,
    ),
    blind(
        "dead-not-declared-again",
        "a life that was declared dead and renews its lease, since Redis has lost the declaration, is not declared again",
        "members.rs",
        "if self.is_healthy() || seen.has_lease {",
        "if self.is_healthy() && !seen.has_lease {",
        kinds=("with_failovers_that_lose_data", "with_everything_and_failovers"),
        seeds=300,
    ),
    blind(
        "superseded-ignored",
        "a node whose life was reaped goes on with it",
        "holding.rs",
        "                self.later(RETRY_AFTER, Later::Step(user.clone()));\n                return self.take_new_life(fx);",
        "                self.later(RETRY_AFTER, Later::Step(user.clone()));\n                return;",
        kinds=("with_stalls_longer_than_a_lease", "with_processes_that_do_not_run_for_a_while", "one_user_moves_and_processes_do_not_run", "with_everything_at_once", "with_everything_and_failovers"),
        seeds=200,
    ),
    # From here on: written with the simulation in mind.
    Mutation(
        "doubles-not-pushed",
        "a relay pushes only what it has not had before",
        "relay.rs",
        "        self.push_to_all(user, &others, stamp, &frame, receipt);\n        self.hand_over(",
        "        if is_first {\n            self.push_to_all(user, &others, stamp, &frame, receipt);\n        }\n        self.hand_over(",
    ),
    Mutation(
        "own-messages-not-recognised",
        "what this process has said itself and another holder pushes back to it counts as somebody else's",
        "peers.rs",
        "node if node == self.node && item.origin.process == self.process => OriginId::SELF,",
        "node if node == self.node && item.origin.process == self.process && node.is_empty() => OriginId::SELF,",
    ),
    Mutation(
        "kept-relayed-backwards",
        "what peers sent before the user opened is relayed with the newest first",
        "relay.rs",
        "        for (_, message) in waiting {\n"
        "            self.kept_bytes -= weight(&message.frame);\n"
        "            self.relay(",
        "        for (_, message) in waiting.into_iter().rev() {\n"
        "            self.kept_bytes -= weight(&message.frame);\n"
        "            self.relay(",
    ),
    Mutation(
        "same-node-is-same-registration",
        "a queue is not sent again when the user has left its relay and come back to it",
        "routes.rs",
        "let again = if before == Some(target) { 0 }",
        "let again = if before.is_some_and(|before| before.peer == target.peer) { 0 }",
        kinds=("many_users_move_and_leave", "one_user_moves_and_envelopes_get_lost", "many_users_move_and_connections_break", "full_links_and_envelopes_get_lost"),
        seeds=200,
    ),
    Mutation(
        "own-return-forgotten",
        "a message that this node's own home hands back is forgotten",
        "relay.rs",
        "            Source::Own { route, place, time } => self.came_back(route, place, Relay::Own(time)),",
        "            Source::Own { route, place, time } => self.routes.settled(route, place, Relay::Own(time)),",
    ),
    Mutation(
        "unpushed-settled-when-user-leaves",
        "what waits for the other holders to be sure counts as arrived when the user leaves",
        "holding.rs",
        "                self.give_back_receipt(Receipt::Shared(unpushed.receipt));",
        "                self.done(unpushed.receipt);",
    ),
    Mutation(
        "dead-life-named",
        "a holder whose life is over is believed in when the directory still names it",
        "peers.rs",
        "let goes_on = holder.incarnation > peer.dead && holder.incarnation >= peer.life;",
        "let goes_on = holder.incarnation > peer.dead || holder.incarnation >= peer.life;",
        kinds=("with_processes_that_do_not_run_for_a_while", "one_user_moves_and_processes_do_not_run", "with_everything_at_once", "with_everything_and_failovers"),
        seeds=200,
    ),
    Mutation(
        "dead-life-heard",
        "what a life sends that was declared dead is taken",
        "peers.rs",
        "        if life <= peer.dead || life < peer.life {",
        "        if life < peer.life {",
        kinds=("with_processes_that_do_not_run_for_a_while", "one_user_moves_and_processes_do_not_run", "with_everything_at_once", "with_everything_and_failovers"),
        seeds=200,
    ),
    Mutation(
        "settled-over-another-link",
        "what came over a link that has ended is settled over the one that follows",
        "peers.rs",
        "        if peer.link_number == link {\n            peer.link.settle(now, seq);",
        "        if peer.link_number >= link {\n            peer.link.settle(now, seq);",
        kinds=("with_processes_that_do_not_run_for_a_while", "one_user_moves_and_processes_do_not_run", "with_everything_at_once", "with_everything_and_failovers"),
        seeds=200,
    ),
    Mutation(
        "sure-despite-own-life",
        "the other holders count as known when this node takes a new life",
        "directory.rs",
        "        self.is_reading = false;\n        self.sure_since = 0;",
        "        self.is_reading = false;",
        kinds=("with_stalls_longer_than_a_lease", "with_processes_that_do_not_run_for_a_while", "one_user_moves_and_processes_do_not_run", "with_everything_at_once", "with_everything_and_failovers"),
        seeds=200,
    ),
    Mutation(
        "waiting-forgotten-after-cut",
        "what waited while Redis could not be reached is not sent on",
        "members.rs",
        "        for slot in self.routes.busy() {",
        "        for slot in self.routes.busy().into_iter().take(0) {",
    ),
    Mutation(
        "unpushed-forgotten-after-cut",
        "after a cut the other holders of users with messages that wait for them are not read",
        "members.rs",
        "        for user in unpushed {",
        "        for user in unpushed.into_iter().take(0) {",
    ),
    Mutation(
        "never-sent-again",
        "a link does not send again what is not acknowledged",
        "link.rs",
        "            self.resend_after = (self.resend_after * 2).min(RESEND_AFTER_MAX);\n            self.go_back();",
        "            self.resend_at = None;",
    ),
    Mutation(
        "refused-in-silence",
        "the sender of a message that finds no room is not told",
        "outgoing.rs",
        "            return self.tell(sender.shard, FromBus::Overloaded { sender }, fx);",
        "            _ = (sender, &*fx);\n            return;",
    ),
    Mutation(
        "young-run-believed",
        "a run of Redis that has just begun is believed to name everybody",
        "members.rs",
        "run.is_young || Some(run.id) != self.members.run || self.is_somebody_missing()",
        "Some(run.id) != self.members.run || self.is_somebody_missing()",
        kinds=("flush", "flush_and_connections_break", "flush_and_kills", "with_failovers_that_lose_data", "with_everything_and_failovers"),
        seeds=300,
    ),
    Mutation(
        "missing-peers-forgotten",
        "the directory is believed before all peers that live have entered their users again",
        "members.rs",
        "!self.members.has_looked || self.peers.live().any(|peer| self.peers.entered_run(peer) != self.members.run)",
        "!self.members.has_looked",
        kinds=("flush", "flush_and_connections_break", "flush_and_kills", "with_failovers_that_lose_data", "with_everything_and_failovers"),
        seeds=300,
    ),
    Mutation(
        "incomplete-walk-believed",
        "a node enters itself in the registry though some of its users could not be put back yet",
        "renewal.rs",
        "        if walk.is_incomplete {",
        "        if false && walk.is_incomplete {",
        kinds=("flush", "flush_and_connections_break", "flush_and_kills", "with_failovers_that_lose_data", "with_everything_and_failovers"),
        seeds=300,
    ),
    Mutation(
        "superseded-renewal-ignored",
        "a node goes on with its life though a renewal says that it was reaped",
        "renewal.rs",
        "if life == self.members.life() && superseded.iter().any(is_here) {",
        "if life == 0 && superseded.iter().any(is_here) {",
        kinds=("with_stalls_longer_than_a_lease", "with_processes_that_do_not_run_for_a_while", "one_user_moves_and_processes_do_not_run", "with_everything_at_once", "with_everything_and_failovers"),
        seeds=200,
    ),
    Mutation(
        "dead-lease-ignored",
        "a node goes on with its life though the renewal of its lease says that it was declared dead",
        "members.rs",
        "            Reply::Lease(LeaseState::Dead) => self.take_new_life(fx),",
        "            Reply::Lease(LeaseState::Dead) => {}",
    ),
    Mutation(
        "declared-dead-rashly",
        "a node that was cut off itself declares others dead",
        "members.rs",
        "        if now.since(since) >= MISSING_FOR && healthy {",
        "        if now.since(since) >= MISSING_FOR && (healthy || since < now) {",
    ),
    Mutation(
        "not-reaped",
        "the users of a node that was declared dead stay in the directory",
        "members.rs",
        "            self.call(Purpose::Reap(node, life), call, fx);\n        }\n    }\n\n    pub(super) fn reaped(",
        "            _ = (node, call);\n        }\n    }\n\n    pub(super) fn reaped(",
    ),
    Mutation(
        "twin-goes-on",
        "a process whose lease another process has taken goes on",
        "members.rs",
        "            Reply::Lease(LeaseState::Taken) => self.fatal = Some(Fatal::IdTaken),",
        "            Reply::Lease(LeaseState::Taken) => {}",
        kinds=("with_two_processes_of_one_name", "with_everything_at_once"),
        seeds=200,
    ),
    Mutation(
        "removal-not-repeated",
        "a user's removal from the directory that failed is not repeated",
        "holding.rs",
        "        if reply == Reply::Failed {\n            return self.later(RETRY_AFTER, Later::Step(user));\n        }",
        "",
        kinds=("with_connections_that_break", "many_users_move_and_connections_break", "with_everything_at_once"),
        seeds=300,
    ),
    Mutation(
        "unheard-waited-for",
        "a user is not let in while a holder that cannot be reached has not answered",
        "peers.rs",
        "                peer.unheard_since = Some(now);\n                peer.went_around_at = now;",
        "                peer.went_around_at = now;",
        kinds=("flush_and_connections_break", "with_connections_that_break", "full_links_and_connections_break"),
        seeds=60,
    ),
    Mutation(
        "relay-never-gone-around",
        "a queue waits for a relay that nobody hears, though the user is elsewhere by now",
        "state.rs",
        "                if self.peers.may_go_around(self.now, peer) {",
        "                if false {",
        kinds=("with_processes_that_stop", "with_processes_that_are_killed", "one_user_is_on_many_nodes_and_connections_break"),
        seeds=200,
    ),
    Mutation(
        "greeting-skipped",
        "a new node lets clients in before the others know it",
        "members.rs",
        "            if all_know && !self.members.is_young && !self.is_somebody_missing() {",
        "            if all_know || true {",
        kinds=("with_processes_that_are_killed", "one_user_moves_and_processes_are_killed", "with_processes_that_stop", "flush_and_kills"),
        seeds=300,
    ),
    Mutation(
        "stopped-with-messages",
        "a node that stops does not wait until what it has said has arrived",
        "members.rs",
        "        let is_quiet = self.directory.users.is_empty()\n",
        "        let is_quiet = true\n            || self.directory.users.is_empty()\n",
        kinds=("many_users_move_and_processes_stop", "with_processes_that_stop"),
        seeds=150,
    ),
    Mutation(
        "own-delivery-kept-to-itself",
        "what the origin delivers itself goes to nobody else",
        "outgoing.rs",
        "self.directory.get(&target).is_none_or(|held| held.is_alone(connection))",
        "self.directory.get(&target).is_none_or(|held| held.is_alone(connection) || held.is_sure(connection))",
    ),
    Mutation(
        "left-takes-all",
        "a holder that says it holds the user no more takes all others off the list",
        "holding.rs",
        "            held.remove_other(from, life, op);\n",
        "            _ = (life, op);\n"
        "            for other in held.others().to_vec() {\n"
        "                held.remove_other(other.peer, other.life, u64::MAX);\n"
        "            }\n",
    ),
    Mutation(
        "death-takes-others",
        "a life that ends takes holders of other nodes off the list whose lives began before it",
        "directory.rs",
        "        self.others.retain(|other| other.peer != peer || other.life > life);\n        let Some(pending)",
        "        self.others.retain(|other| other.life > life);\n        let Some(pending)",
    ),
    # What users see who go and come back.
    Mutation(
        "relay-not-waited-for",
        "what a relay has yet to answer is sent again when its user has left",
        "routes.rs",
        "Some(until) => (now < until, None),\n"
        "            None => {\n"
        "                route.answers_until = Some(now.after(RELAY_ANSWERS_WITHIN));\n"
        "                (true, Some(RELAY_ANSWERS_WITHIN))",
        "Some(until) => (now < until && false, None),\n"
        "            None => {\n"
        "                route.answers_until = Some(now.after(RELAY_ANSWERS_WITHIN));\n"
        "                (false, None)",
        kinds=("many_users_move_and_leave", "many_users_move_and_processes_stop"),
        seeds=150,
    ),
    Mutation(
        "renewal-names-nobody",
        "after a cut it is not learned from renewals who has begun to hold users meanwhile",
        "renewal.rs",
        "self.learn_and_ask(user, others, fx);",
        "_ = (user, others, &mut *fx);",
        kinds=("one_user_stays_and_little_works", "with_everything_and_failovers"),
        seeds=400,
    ),
    Mutation(
        "pushes-for-anybody",
        "a push that was under way when the user left counts for the connections that come after",
        "directory.rs",
        "self.is_open() || self.is_meant(op) || (op == 0 && self.is_here())",
        "self.is_here() || op == u64::MAX",
        kinds=("many_users_move_and_leave", "many_users_move_and_processes_stop"),
        seeds=200,
    ),
    Mutation(
        "pushes-for-nobody",
        "who was let in past a holder takes no push of it that names an earlier registration",
        "directory.rs",
        "self.is_open() || self.is_meant(op) || (op == 0 && self.is_here())",
        "self.is_meant(op) || (op == 0 && self.is_here())",
        kinds=("one_user_stays_and_little_works", "with_an_offline_grace", "with_connections_that_break"),
        seeds=400,
    ),
    Mutation(
        "unheard-before-it-was-asked",
        "that a holder was not heard before it was asked is taken for its silence",
        "peers.rs",
        "let was_asked_in_vain = self.get(id).unheard_at >= asked_at || now.since(asked_at) >= ANSWERS_WITHIN;",
        "let was_asked_in_vain = self.get(id).unheard_at >= asked_at || now.since(asked_at) < Duration::MAX;",
        kinds=("one_user_stays_and_little_works", "with_everything_and_failovers"),
        seeds=400,
    ),
    Mutation(
        "unheard-waits-for-a-publish",
        "who asks a holder that has long not been heard waits until something is published for it again",
        "peers.rs",
        "let was_asked_in_vain = self.get(id).unheard_at >= asked_at || now.since(asked_at) >= ANSWERS_WITHIN;",
        "let was_asked_in_vain = self.get(id).unheard_at >= asked_at;",
        kinds=("flush_and_connections_break", "with_connections_that_break", "full_links_and_connections_break"),
        seeds=100,
    ),
]
