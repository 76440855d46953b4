"""Runs a Python etcd client on etcd and on the ring under test, and compares what it sees.

The client is `aetcd`. Each scenario writes an account, with revisions counted from its begin; the two
accounts must be the same, word for word.
"""

import argparse
import asyncio
import io
import sys

import aetcd
import grpc

PREFIX = b"python/"
# How long one scenario may take, in seconds.
SCENARIO_MAX_S = 60


class World:
    """One server, and the account of what a scenario saw there."""

    def __init__(self, arguments, name):
        host, port = getattr(arguments, name).split(",")[0].rsplit(":", 1)
        self.address = {"host": host, "port": int(port), "timeout": 10}
        self.account = []
        self.base = 0
        self.client = None

    async def open(self, **more):
        """One more client."""
        client = aetcd.Client(**self.address, **more)
        await client.connect()
        return client

    def saw(self, *words):
        """Writes a line into the account."""
        self.account.append(" ".join(str(word) for word in words))

    def at(self, revision):
        """A revision, counted from the begin of the scenario."""
        return revision - self.base

    def pair(self, what, got):
        """Writes a pair that was read."""
        if got is None:
            self.saw(what, "nothing")
            return
        self.saw(what, got.key, got.value, self.at(got.create_revision), self.at(got.mod_revision), got.version)

    async def refused(self, what, awaited):
        """Writes how something was refused."""
        try:
            await awaited
            self.saw(what, "not refused")
        except aetcd.ClientError as error:
            self.saw(what, type(error).__name__, error)


async def pairs(world):
    """Puts, gets of every kind, deletions."""
    client = world.client
    for number in range(10):
        put = await client.put(PREFIX + b"k%d" % (number % 7), b"v%d" % number, prev_kv=True)
        world.saw("put at", world.at(put.header.revision), put.prev_kv and put.prev_kv.value)
    world.pair("one", await client.get(PREFIX + b"k1"))
    world.pair("none", await client.get(PREFIX + b"missing"))
    for target in ("key", "version", "create", "mod", "value"):
        for order in ("ascend", "descend"):
            found = await client.get_prefix(PREFIX, sort_order=order, sort_target=target)
            world.saw("by", target, order, [got.key for got in found])
    for got in await client.get_range(PREFIX + b"k2", PREFIX + b"k5"):
        world.pair("range", got)
    world.pair("deleted", (await client.delete(PREFIX + b"k1", prev_kv=True)).prev_kv)
    world.saw("deleted", await client.delete(PREFIX + b"k1"))
    world.saw("deleted", (await client.delete_prefix(PREFIX + b"k")).deleted)
    await world.refused("empty key", client.put(b"", b"x"))
    await world.refused("no such lease", client.put(PREFIX + b"k", b"x", lease=4711))


async def transactions(world):
    """Comparisons of every kind, and what follows from them."""
    client, t = world.client, world.client.transactions
    key = PREFIX + b"t"
    await client.put(key, b"1")
    for compare in (t.value(key) == b"1", t.value(key) != b"1", t.version(key) > 0, t.create(key) == 0,
                    t.mod(key) < 10**9):
        done, answers = await client.transaction(
            compare=[compare],
            success=[t.get(key), t.put(PREFIX + b"yes", b"y")],
            failure=[t.get(key), t.delete(PREFIX + b"yes")])
        world.saw("succeeded", done, len(answers), answers[0][0][0])
    world.saw("replaced", await client.replace(key, b"1", b"2"), await client.replace(key, b"1", b"3"))
    nested, answers = await client.transaction(
        compare=[], success=[t.txn(compare=[t.value(key) == b"2"], success=[t.get(key)], failure=[])], failure=[])
    world.saw("nested", nested, answers[0].response_txn.succeeded)
    await world.refused("twice", client.transaction([], [t.put(key, b"1"), t.put(key, b"2")], []))


async def watches(world):
    """A watch of the past and the present, filtered, canceled and compacted."""
    client = world.client
    for number in range(5):
        await client.put(PREFIX + b"w", b"%d" % number)
    await client.delete(PREFIX + b"w")
    await client.put(PREFIX + b"end", b"")
    watch = await client.watch_prefix(PREFIX, start_revision=world.base + 1, prev_kv=True)
    async for event in watch:
        world.saw(event.kind, event.kv.key, event.kv.value, world.at(event.kv.mod_revision),
                  event.prev_kv and event.prev_kv.value)
        if event.kv.key == PREFIX + b"end":
            await watch.cancel()
    once = await client.watch_once(PREFIX + b"w", start_revision=world.base + 2, kind=aetcd.EventKind.DELETE)
    world.saw("only deletions", once.kind, world.at(once.kv.mod_revision))
    await client.compact(world.base + 4, physical=True)
    watch = await client.watch(PREFIX + b"w", start_revision=world.base + 2)
    try:
        async for event in watch:
            world.saw("an event from before the compaction", event)
    except aetcd.RevisionCompactedError as error:
        world.saw("compacted", world.at(error.compacted_revision))
    await world.refused("compact again", client.compact(world.base + 4))


async def leases(world):
    """A lease with keys, renewed, revoked, and one that runs out."""
    client = world.client
    lease = await client.lease(100)
    await client.put(PREFIX + b"leased", b"x", lease=lease)
    world.saw("granted", lease.ttl, await lease.granted_ttl(), list(await lease.keys()))
    world.saw("renewed", (await lease.refresh()).TTL, await lease.remaining_ttl() > 90)
    await lease.revoke()
    world.pair("revoked", await client.get(PREFIX + b"leased"))
    await world.refused("revoked again", lease.revoke())
    await client.lease(50, lease_id=123456)
    await world.refused("granted again", client.lease(50, lease_id=123456))
    await client.revoke_lease(123456)
    short = await client.lease(2)
    await client.put(PREFIX + b"short", b"x", lease=short)
    gone = await client.watch_once(PREFIX + b"short", start_revision=world.base + 1,
                                   kind=aetcd.EventKind.DELETE, timeout=20)
    world.saw("ran out", gone.kind)


async def locks(world):
    """Several holders of one lock count together."""
    await world.client.put(PREFIX + b"count", b"0")

    async def hold():
        client = await world.open()
        for _ in range(5):
            async with client.lock(PREFIX + b"lock", ttl=30) as lock:
                assert await lock.is_acquired()
                count = int((await client.get(PREFIX + b"count")).value)
                await client.put(PREFIX + b"count", b"%d" % (count + 1))
        await client.close()

    await asyncio.gather(*(hold() for _ in range(4)))
    world.saw("counted", (await world.client.get(PREFIX + b"count")).value)
    held = world.client.lock(PREFIX + b"lock")
    world.saw("first", await held.acquire(), "second", await world.client.lock(PREFIX + b"lock").acquire(timeout=0))
    world.saw("released", await held.release(), await held.release())


async def operations(world):
    """What an operator does."""
    client = world.client
    status = await client.status()
    world.saw("version", bool(status.version), "leader", status.leader is not None)
    world.saw("has members", [bool(member.name and member.client_urls) async for member in client.members()][:1])
    await client.defragment()
    world.saw("alarms", [alarm async for alarm in client.list_alarms()])
    file = io.BytesIO()
    await client.snapshot(file)
    world.saw("snapshot with a digest", len(file.getvalue()) % 512 == 32)


SCENARIOS = (pairs, transactions, watches, leases, locks, operations)


async def play(scenario, world):
    """Runs one scenario; how it failed is the end of its account."""
    world.account = []
    world.client = await world.open()
    try:
        await world.client.delete_prefix(PREFIX)
        world.base = (await world.client.put(PREFIX + b"begin", b"")).header.revision
        await asyncio.wait_for(scenario(world), SCENARIO_MAX_S)
    except Exception as error:  # Whatever it is, it is compared and shown.
        world.saw("FAILED", type(error).__name__, error)
    await world.client.close()


async def main(arguments):
    """Runs all scenarios on both and returns how many differ."""
    both = [World(arguments, "etcd"), World(arguments, "satrap")]
    lines, differences = 0, 0
    for scenario in SCENARIOS:
        # The way a connection is made differs between the two, so they take turns.
        for world, name in zip(both, ("etcd", "satrap")):
            aetcd.client.rpc.insecure_channel = connector(arguments, name)
            await play(scenario, world)
        left, right = both[0].account, both[1].account
        lines += len(left)
        if arguments.verbose:
            print(scenario.__name__, *left, sep="\n  ")
        if left != right or any(line.startswith("FAILED") for line in left):
            differences += 1
            at = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)) - 1)
            print(f"DIFFERENCE in {scenario.__name__}, observation {at}:",
                  *left[at:at + 1], "--- satrap", *right[at:at + 1], sep="\n  ")
    print(f"Python client aetcd: {len(SCENARIOS)} scenarios, {lines} observations, {differences} differences")
    return differences


def connector(arguments, name):
    """How to connect: the client itself knows only plain text."""
    authority = getattr(arguments, name + "_ca")
    if not authority:
        return lambda target, options=None: grpc.aio.insecure_channel(target, options=list(options or ()))

    def read(path):
        with open(path, "rb") as file:
            return file.read()

    cert, key = getattr(arguments, name + "_cert"), getattr(arguments, name + "_key")
    credentials = grpc.ssl_channel_credentials(
        read(authority), read(key) if key else None, read(cert) if cert else None)
    return lambda target, options=None: grpc.aio.secure_channel(target, credentials, options=list(options or ()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for server in ("etcd", "satrap"):
        parser.add_argument(f"--{server}", required=True, metavar="HOST:PORT")
        for part in ("ca", "cert", "key"):
            parser.add_argument(f"--{server}-{part}", metavar="FILE")
    parser.add_argument("--verbose", action="store_true")
    sys.exit(1 if asyncio.run(main(parser.parse_args())) else 0)
