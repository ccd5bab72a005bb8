"""Where messages were lost: what the users sent and got, against what the nodes counted.

A message that never arrived is in one of these: no node ever read it, so it ended in the buffers of a client, of the
proxy, or of a node's kernel; a node read it and dropped it, since no node had its target; a node wrote it to a connection
that had ended without the node's knowledge; or a node counts it as lost or refused. What is left is not accounted for.
"""

import re


def read_counts(text):
    """What a node's metrics say about messages."""

    def total(pattern):
        return sum(int(float(value)) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))

    return {
        "read": total(r'ringmesh_messages_in_total\{shard="\d+",type="send_message"\}'),
        "written": total(r'ringmesh_messages_out_total\{shard="\d+",type="message"\}'),
        "offline": total(r'ringmesh_dropped_total\{shard="\d+",reason="offline"\}') + total("ringmesh_bus_offline_total"),
        "ended": total(r'ringmesh_dropped_total\{shard="\d+",reason="(?:closing|too_slow)"\}'),
        "refused": total(r'ringmesh_dropped_total\{shard="\d+",reason="overloaded"\}') + total("ringmesh_bus_overloaded_total"),
        "bus": total("ringmesh_bus_lost_total"),
    }


def settle(ledger, counts):
    """The places of what was lost, by the sums of the nodes' counts; `counts` has one of `read_counts` for each node."""
    sums = {name: sum(each[name] for each in counts) for name in counts[0]}
    lost = len(ledger.sent) - len(ledger.arrived)
    unread = len(ledger.sent) - sums["read"]
    # A message is written once for each connection of its target, and copies that came count as arrived or as twice.
    unseen = sums["written"] - len(ledger.arrived) - len(ledger.twice)
    if unseen < 0:
        # A node that is gone has read and written some after it was asked for the last time.
        unread, unseen = unread + unseen, 0
    places = {
        "never read by a node": unread,
        "read, and their target was on no node": sums["offline"],
        "written to connections that had ended": unseen,
        "refused, and their senders told": sums["refused"],
        "counted as lost by the bus": sums["bus"],
    }
    return {"lost": lost, "places": places, "unaccounted": lost - sum(places.values())}


def words(accounts):
    places = [f"{count} {place}" for place, count in accounts["places"].items() if count]
    if accounts["unaccounted"] > 0:
        places.append(f"{accounts['unaccounted']} NOT ACCOUNTED FOR")
    elif accounts["unaccounted"] < 0:
        places.append(f"{-accounts['unaccounted']} of these written to two connections")
    return f"{accounts['lost']} lost: {', '.join(places) or 'nothing'}"
