"""Runs PostgreSQL as a cluster of two under Patroni, kills its leader, and prints what is seen.

    cluster.py --packages FOLDER HOST:PORT,...

compare.py runs it on etcd and on the ring. FOLDER has the Python packages of requirements.txt. PostgreSQL
does not run as root, so for root everything is done as the user `postgres`.
"""

import argparse
import glob
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PASSWORD = "secret"
ROWS = 1000
# How long each thing that is waited for may take, in seconds. Patroni's lease lives for at least 20.
WAIT_MAX_S = 90
# How long each node may take to stop, in seconds; compare.py gives 20 for all.
STOP_MAX_S = 8


def reserve_port():
    """A socket bound to a free port, which no other process gets while it is open.

    It does not listen, so the process that the port is for binds it too: both have SO_REUSEADDR.
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


class Node:
    """One Patroni and its PostgreSQL."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        self.reserved = [reserve_port() for _ in range(2)]
        self.api, self.port = (bound.getsockname()[1] for bound in self.reserved)
        self.folder = os.path.join(cluster.folder, name)
        self.process = None
        config = {
            "scope": f"satrap-{os.getpid()}",
            "name": name,
            "restapi": {"listen": f"127.0.0.1:{self.api}", "connect_address": f"127.0.0.1:{self.api}"},
            "etcd3": {"hosts": cluster.endpoints},
            "bootstrap": {
                "dcs": {"ttl": 20, "loop_wait": 1, "retry_timeout": 3, "postgresql": {"use_pg_rewind": True}},
                "initdb": [{"encoding": "UTF8"}, "data-checksums", "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": f"{self.folder}/data",
                "bin_dir": cluster.binaries,
                "pgpass": f"{self.folder}/pgpass",
                "pg_hba": ["local all all trust", "host all all 127.0.0.1/32 md5",
                           "host replication all 127.0.0.1/32 md5"],
                "authentication": {
                    "superuser": {"username": "postgres", "password": PASSWORD},
                    "replication": {"username": "replicator", "password": PASSWORD},
                    "rewind": {"username": "rewinder", "password": PASSWORD},
                },
                "parameters": {"unix_socket_directories": self.folder, "fsync": "off", "shared_buffers": "16MB",
                               # Otherwise those who are killed leave files in /dev/shm.
                               "dynamic_shared_memory_type": "mmap"},
            },
        }
        cluster.own(self.folder)
        self.config = os.path.join(self.folder, "patroni.yml")
        with open(self.config, "w", encoding="utf-8") as file:
            json.dump(config, file)  # Which is YAML as well.
        os.chmod(self.config, 0o644)

    def start(self):
        """Starts it, for the first time or again."""
        with open(os.path.join(self.cluster.folder, f"{self.name}.log"), "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "patroni", self.config], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, env=dict(os.environ, PYTHONPATH=self.cluster.packages),
                **self.cluster.user)

    def kill(self):
        """Kills Patroni and every process of PostgreSQL, as if the machine had lost its power."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        try:
            with open(f"{self.folder}/data/postmaster.pid", encoding="utf-8") as file:
                postmaster = int(file.readline())
            # Those of PostgreSQL are in a group of their own, led by the first.
            os.killpg(os.getpgid(postmaster), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            pass
        self.process = None

    def stop(self):
        """Ends both in their own way, so that PostgreSQL leaves no shared memory behind."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(STOP_MAX_S)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def ask(self, path):
        """The code and the answer of the REST API; code 0 if there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.api}/{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None
        except (OSError, ValueError):
            return 0, None

    def sql(self, text, psycopg):
        """The first value that a statement returns, or None."""
        with psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD, dbname="postgres",
                             connect_timeout=5, autocommit=True) as connection:
            cursor = connection.execute(text)
            return cursor.fetchone()[0] if cursor.description else None


class Cluster:
    """Where everything is."""

    def __init__(self, packages, endpoints):
        self.endpoints = endpoints
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.folder = tempfile.mkdtemp(prefix="satrap-patroni-", dir=memory)
        self.user = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam("postgres")
            self.user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        os.chmod(self.folder, 0o755)
        # The other user may not be let into the folder that they are in.
        self.packages = os.path.join(self.folder, "packages")
        shutil.copytree(packages, self.packages)
        self.binaries = max(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[-2]))

    def own(self, folder):
        """Makes a folder that the user of PostgreSQL owns."""
        os.mkdir(folder, 0o700)
        if self.user:
            os.chown(folder, self.user["user"], self.user["group"])


def saw(*words):
    """Prints a line of the account."""
    print(*words, flush=True)


def until(what, condition):
    """Waits until something is true, and returns how long it took."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > WAIT_MAX_S:
            raise TimeoutError(f"{what}: not within {WAIT_MAX_S} s")
        time.sleep(0.1)
    return time.monotonic() - begun


def play(nodes, psycopg):
    """The scenario."""
    first, second = nodes

    def rows(node):
        try:
            return node.sql("SELECT count(*) FROM t", psycopg)
        except psycopg.Error:
            return None

    def writes(node):
        # A node is the primary for Patroni a moment before PostgreSQL takes writes.
        try:
            return node.ask("primary")[0] == 200 and not node.sql("SELECT pg_is_in_recovery()", psycopg)
        except psycopg.Error:
            return False

    first.start()
    until("a leader", lambda: writes(first))
    second.start()
    until("a replica", lambda: second.ask("replica")[0] == 200)
    saw("a leads and b follows")
    first.sql("CREATE TABLE t (n int)", psycopg)
    first.sql(f"INSERT INTO t SELECT generate_series(1, {ROWS})", psycopg)
    until("the rows at the replica", lambda: rows(second) == ROWS)
    saw("b has", rows(second), "rows")
    first.kill()
    took = until("another leader", lambda: writes(second))
    print(f"# b led {took:.1f} s after a was killed")
    saw("b leads")
    second.sql(f"INSERT INTO t SELECT generate_series(1, {ROWS})", psycopg)
    saw("b has", rows(second), "rows")
    first.start()
    until("the former leader as a replica", lambda: first.ask("replica")[0] == 200)
    until("all rows at the former leader", lambda: rows(first) == 2 * ROWS)
    saw("a follows and has", rows(first), "rows")
    until("both in the cluster", lambda: len(roles(second)) == 2)
    saw("the cluster is", roles(second))
    request = urllib.request.Request(
        f"http://127.0.0.1:{second.api}/switchover", data=json.dumps({"leader": "b", "candidate": "a"}).encode(),
        headers={"Content-Type": "application/json"})
    until("a candidate", lambda: (second.ask("cluster")[1] or {}).get("members") and lag(second, "a") == 0)
    with urllib.request.urlopen(request, timeout=WAIT_MAX_S) as answer:
        saw("switchover", answer.status)
    until("the first as leader again", lambda: writes(first))
    until("the second as a replica", lambda: second.ask("replica")[0] == 200)
    saw("a leads again and has", rows(first), "rows")


def members(node):
    """What the cluster's members are, as a node says."""
    return (node.ask("cluster")[1] or {"members": []})["members"]


def lag(node, name):
    """How far a member is behind, in bytes."""
    return next((one.get("lag") for one in members(node) if one["name"] == name), None)


def roles(node):
    """The members that are there and run, with their roles."""
    return sorted((one["name"], one["role"]) for one in members(node) if one["state"] in ("running", "streaming"))


def main(arguments):
    """Runs the scenario and ends what it started, however it ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.path.insert(0, arguments.packages)
    import psycopg  # Found only there.
    cluster = Cluster(arguments.packages, arguments.endpoints.split(","))
    nodes = []
    try:
        nodes = [Node(cluster, name) for name in ("a", "b")]
        play(nodes, psycopg)
    except BaseException:
        for node in nodes:
            with open(os.path.join(cluster.folder, f"{node.name}.log"), encoding="utf-8") as log:
                print(f"log of {node.name}:", *log.read().splitlines()[-25:], sep="\n")
        raise
    finally:
        for node in nodes:
            node.stop()
        shutil.rmtree(cluster.folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", required=True)
    parser.add_argument("endpoints")
    main(parser.parse_args())
