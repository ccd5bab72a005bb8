"""A business service that uses the contract's keys and channels and nothing else.

It greets each user who comes online with a message to that user, and tells everybody who has gone offline.

Usage: service.py REDIS_URL. Prints `ready` once it hears the events, and serves until its standard input ends.
"""

import json
import os
import sys
import threading

from redis import Redis


def greet(redis, user):
    node = redis.get(f"user:node:{user}")
    assert node, f"{user} is online, and GET user:node:{user} names no node"
    assert 0 < redis.ttl(f"user:node:{user}") <= 3600, "the mapping has an end"
    assert int(redis.get(f"node:connections:{node}")) >= 0, "the node counts its connections"
    message = {"type": "greeting", "to": user, "kept as it stands": [1, 2.5, None, {"日本": "🦀"}]}
    heard = redis.publish(f"node:{node}", json.dumps({"action": "send_to_user", "user_id": user, "message": message}))
    assert heard == 1, f"node:{node} has {heard} subscribers"


def tell_all(redis, user):
    order = json.dumps({"action": "broadcast", "message": {"type": "gone", "who": user}})
    for channel in redis.pubsub_channels("node:*"):
        redis.publish(channel, order)


def serve(url):
    redis = Redis.from_url(url, decode_responses=True)
    with redis.pubsub() as pubsub:
        pubsub.subscribe("user:events")
        for push in pubsub.listen():
            if push["type"] == "subscribe":
                print("ready", flush=True)
                continue
            event = json.loads(push["data"])
            if event["event"] == "online":
                greet(redis, event["user_id"])
            else:
                tell_all(redis, event["user_id"])


def wait_for_the_end():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=wait_for_the_end, daemon=True).start()
serve(sys.argv[1])
