"""A node of another implementation: it knows the contract's tables, nothing of ringmesh, and no care.

It does what the plainest reading of the contract does, mistakes included: SET when a user comes, DEL when he goes
(whoever holds him by then), GET and PUBLISH for each message, a PUBLISH to every channel of a node for a broadcast.

Usage: foreign_node.py REDIS_URL NODE_ID. Prints the port that it listens on, and serves until its standard input ends.
"""

import asyncio
import json
import sys
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import Redis
from websockets.asyncio.server import serve

TTL_S = 3600


class Node:
    def __init__(self, url, node_id):
        self.redis = Redis.from_url(url, decode_responses=True)
        self.id = node_id
        self.users = {}

    async def talk(self, client):
        user = parse_qs(urlsplit(client.request.path).query)["user_id"][0]
        self.users[user] = client
        await self.redis.set(f"user:node:{user}", self.id, ex=TTL_S)
        await self.redis.incr(f"node:connections:{self.id}")
        await self.event("online", user)
        try:
            async for text in client:
                await self.obey(user, client, json.loads(text))
        finally:
            if self.users.get(user) is client:
                del self.users[user]
            await self.redis.delete(f"user:node:{user}")
            await self.redis.decr(f"node:connections:{self.id}")
            await self.event("offline", user)

    async def obey(self, user, client, frame):
        match frame["type"]:
            case "ping":
                await client.send(json.dumps({"type": "pong"}))
            case "send_message":
                target = frame["target_user"]
                message = {"type": "message", "from": user, "content": frame.get("content")}
                if node := await self.redis.get(f"user:node:{target}"):
                    await self.publish(f"node:{node}", action="send_to_user", user_id=target, message=message)
            case "broadcast":
                message = {"type": "broadcast", "from": user, "content": frame.get("content")}
                for channel in await self.redis.pubsub_channels("node:*"):
                    await self.publish(channel, action="broadcast", message=message)

    async def publish(self, channel, **what):
        await self.redis.publish(channel, json.dumps(what))

    async def event(self, event, user):
        await self.redis.publish("user:events", json.dumps({"event": event, "user_id": user}))

    async def listen(self, pubsub):
        async for push in pubsub.listen():
            if push["type"] != "message":
                continue
            order = json.loads(push["data"])
            message = json.dumps(order["message"])
            if order["action"] == "broadcast":
                clients = list(self.users.values())
            else:
                clients = [client for client in [self.users.get(order["user_id"])] if client]
            for client in clients:
                await client.send(message)


async def run(url, node_id):
    node = Node(url, node_id)
    async with node.redis.pubsub() as pubsub:
        await pubsub.subscribe(f"node:{node_id}")
        async with serve(node.talk, "127.0.0.1", 0) as server:
            listening = asyncio.create_task(node.listen(pubsub))
            print(server.sockets[0].getsockname()[1], flush=True)
            ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            # Either the test ends this node, or its listener fails, which must not pass unseen.
            await asyncio.wait([listening, ended], return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()
                raise SystemExit("the subscription ended")
            listening.cancel()


asyncio.run(run(sys.argv[1], sys.argv[2]))
