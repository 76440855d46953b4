import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.Lease;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.election.CampaignResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.watch.WatchEvent;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;

/**
 * Has the client jetcd do what programs do with it, and prints what it sees; compare.py runs it on etcd
 * and on the ring. Revisions are counted from the begin.
 */
public final class Jetcd {
  /** One connection for each watcher's stream and everything else. */
  private static final int WATCHERS = 1500;

  private static Client client;
  private static long base;

  public static void main(String[] arguments) throws Exception {
    // The first member only: with all of them, the streams would be spread.
    client = Client.builder().endpoints("http://" + arguments[0].split(",")[0]).build();
    pairs();
    transactions();
    watches();
    leases();
    locks();
    elections();
    manyWatchers();
    client.close();
    System.exit(0);
  }

  private static void saw(Object... words) {
    List<String> line = new ArrayList<>();
    for (Object word : words) {
      line.add(String.valueOf(word));
    }
    System.out.println(String.join(" ", line));
  }

  private static ByteSequence bytes(String text) {
    return ByteSequence.from(text, StandardCharsets.UTF_8);
  }

  /** Waits for an answer, for ever: compare.py bounds how long the program runs. */
  private static <T> T get(CompletableFuture<T> answer) throws Exception {
    return answer.get();
  }

  private static void refused(String what, CompletableFuture<?> answer) throws Exception {
    try {
      answer.get();
      saw(what, "not refused");
    } catch (ExecutionException error) {
      saw(what, error.getCause().getMessage());
    }
  }

  private static void begin(String scenario) throws Exception {
    saw("--", scenario);
    KV kv = client.getKVClient();
    get(kv.delete(bytes("jetcd/"), DeleteOption.builder().isPrefix(true).build()));
    base = get(kv.put(bytes("jetcd/begin"), bytes(""))).getHeader().getRevision();
  }

  private static String shown(KeyValue kv) {
    return kv.getKey() + "=" + kv.getValue() + "@" + (kv.getModRevision() - base) + "v" + kv.getVersion();
  }

  private static void pairs() throws Exception {
    begin("pairs");
    KV kv = client.getKVClient();
    for (int i = 0; i < 10; i++) {
      var put = get(kv.put(bytes("jetcd/k" + i % 7), bytes("v" + i), PutOption.builder().withPrevKV().build()));
      saw("put at", put.getHeader().getRevision() - base, put.hasPrevKv() ? shown(put.getPrevKv()) : "new");
    }
    for (var order : GetOption.SortOrder.values()) {
      for (var target : GetOption.SortTarget.values()) {
        var option = GetOption.builder().isPrefix(true).withSortField(target).withSortOrder(order).build();
        StringBuilder line = new StringBuilder();
        for (KeyValue one : get(kv.get(bytes("jetcd/k"), option)).getKvs()) {
          line.append(' ').append(shown(one));
        }
        saw(order, target, line);
      }
    }
    var page = get(kv.get(bytes("jetcd/"), GetOption.builder().isPrefix(true).withLimit(3).build()));
    saw("page", page.getKvs().size(), "of", page.getCount(), page.isMore());
    var deleted = get(kv.delete(bytes("jetcd/k"), DeleteOption.builder().isPrefix(true).withPrevKV(true).build()));
    saw("deleted", deleted.getDeleted(), shown(deleted.getPrevKvs().get(0)));
    refused("of the future", kv.get(bytes("x"), GetOption.builder().withRevision(base + 1000).build()));
    refused("no such lease", kv.put(bytes("x"), bytes("x"), PutOption.builder().withLeaseId(4711).build()));
    refused("empty key", kv.put(bytes(""), bytes("x")));
  }

  private static void transactions() throws Exception {
    begin("transactions");
    KV kv = client.getKVClient();
    ByteSequence key = bytes("jetcd/t");
    get(kv.put(key, bytes("1")));
    for (Cmp.Op operator : Cmp.Op.values()) {
      var answer = get(kv.txn().If(new Cmp(key, operator, CmpTarget.value(bytes("1"))))
          .Then(Op.put(bytes("jetcd/yes"), bytes("y"), PutOption.DEFAULT), Op.get(key, GetOption.DEFAULT))
          .Else(Op.get(key, GetOption.DEFAULT)).commit());
      saw(operator, answer.isSucceeded(), answer.getPutResponses().size(), answer.getGetResponses().size());
    }
    refused("twice", kv.txn().Then(Op.put(key, bytes("a"), PutOption.DEFAULT), Op.put(key, bytes("b"), PutOption.DEFAULT)).commit());
  }

  private static void watches() throws Exception {
    begin("watches");
    KV kv = client.getKVClient();
    CountDownLatch ended = new CountDownLatch(1);
    List<String> seen = Collections.synchronizedList(new ArrayList<>());
    get(kv.put(bytes("jetcd/w"), bytes("1")));
    var option = WatchOption.builder().isPrefix(true).withRevision(base + 1).withPrevKV(true).build();
    Watch.Watcher watcher = client.getWatchClient().watch(bytes("jetcd/w"), option, response -> {
      for (WatchEvent event : response.getEvents()) {
        seen.add(event.getEventType() + " " + shown(event.getKeyValue()) + " after " + event.getPrevKV().getValue());
        if (event.getKeyValue().getValue().equals(bytes("end"))) {
          ended.countDown();
        }
      }
    });
    get(kv.put(bytes("jetcd/w"), bytes("2")));
    get(kv.delete(bytes("jetcd/w")));
    get(kv.put(bytes("jetcd/w"), bytes("end")));
    ended.await();
    watcher.close();
    seen.forEach(Jetcd::saw);
    long compacted = base + 2;
    get(kv.compact(compacted));
    CompletableFuture<String> failure = new CompletableFuture<>();
    Watch.Listener listener = Watch.listener(response -> failure.complete("an event"), error -> failure.complete(error.getMessage()));
    Watch.Watcher late = client.getWatchClient().watch(bytes("jetcd/w"), WatchOption.builder().withRevision(base + 1).build(), listener);
    saw("from before the compaction:", get(failure).replace(String.valueOf(compacted), "2"));
    late.close();
  }

  private static void leases() throws Exception {
    begin("leases");
    Lease leases = client.getLeaseClient();
    KV kv = client.getKVClient();
    long lease = get(leases.grant(60)).getID();
    get(kv.put(bytes("jetcd/leased"), bytes("x"), PutOption.builder().withLeaseId(lease).build()));
    saw("renewed to", get(leases.keepAliveOnce(lease)).getTTL());
    var left = get(leases.timeToLive(lease, LeaseOption.builder().withAttachedKeys().build()));
    saw("granted", left.getGrantedTTL(), left.getKeys());
    get(leases.revoke(lease));
    saw("revoked", get(kv.get(bytes("jetcd/leased"))).getCount());
    refused("revoked again", leases.revoke(lease));
    long kept = get(leases.grant(2)).getID();
    CountDownLatch renewals = new CountDownLatch(3);
    var keeper = leases.keepAlive(kept, new io.grpc.stub.StreamObserver<>() {
      @Override public void onNext(io.etcd.jetcd.lease.LeaseKeepAliveResponse response) {
        renewals.countDown();
      }
      @Override public void onError(Throwable error) {
        saw("lost", error);
      }
      @Override public void onCompleted() {}
    });
    renewals.await();
    get(kv.put(bytes("jetcd/kept"), bytes("x"), PutOption.builder().withLeaseId(kept).build()));
    CompletableFuture<WatchEvent.EventType> gone = new CompletableFuture<>();
    var watcher = client.getWatchClient().watch(bytes("jetcd/kept"), WatchOption.builder().withNoPut(true).build(),
        response -> response.getEvents().forEach(event -> gone.complete(event.getEventType())));
    keeper.close();
    saw("ran out", get(gone));
    watcher.close();
  }

  private static void locks() throws Exception {
    begin("locks");
    KV kv = client.getKVClient();
    get(kv.put(bytes("jetcd/number"), bytes("0")));
    List<Thread> holders = new ArrayList<>();
    for (int i = 0; i < 5; i++) {
      holders.add(new Thread(() -> {
        try {
          long lease = get(client.getLeaseClient().grant(60)).getID();
          for (int j = 0; j < 5; j++) {
            ByteSequence held = get(client.getLockClient().lock(bytes("jetcd/lock"), lease)).getKey();
            int number = Integer.parseInt(get(kv.get(bytes("jetcd/number"))).getKvs().get(0).getValue().toString());
            get(kv.put(bytes("jetcd/number"), bytes(String.valueOf(number + 1))));
            get(client.getLockClient().unlock(held));
          }
          get(client.getLeaseClient().revoke(lease));
        } catch (Exception error) {
          saw("FAILED", error);
        }
      }));
    }
    holders.forEach(Thread::start);
    for (Thread holder : holders) {
      holder.join();
    }
    saw("counted", get(kv.get(bytes("jetcd/number"))).getKvs().get(0).getValue());
  }

  private static void elections() throws Exception {
    begin("elections");
    var office = client.getElectionClient();
    ByteSequence name = bytes("jetcd/office");
    long one = get(client.getLeaseClient().grant(60)).getID();
    long two = get(client.getLeaseClient().grant(60)).getID();
    CampaignResponse first = get(office.campaign(name, one, bytes("first")));
    saw("leader", get(office.leader(name)).getKv().getValue());
    get(office.proclaim(first.getLeader(), bytes("first again")));
    saw("leader", get(office.leader(name)).getKv().getValue());
    CompletableFuture<CampaignResponse> second = office.campaign(name, two, bytes("second"));
    get(office.resign(first.getLeader()));
    get(second);
    saw("leader", get(office.leader(name)).getKv().getValue());
    refused("the former proclaims", office.proclaim(first.getLeader(), bytes("late")));
    get(client.getLeaseClient().revoke(one));
    get(client.getLeaseClient().revoke(two));
  }

  /** Each watcher has a stream of its own, all on one connection, on which everything else goes on. */
  private static void manyWatchers() throws Exception {
    begin("many watchers");
    KV kv = client.getKVClient();
    CountDownLatch events = new CountDownLatch(WATCHERS);
    CountDownLatch created = new CountDownLatch(WATCHERS);
    List<Watch.Watcher> watchers = new ArrayList<>();
    for (int i = 0; i < WATCHERS; i++) {
      var option = WatchOption.builder().withCreateNotify(true).build();
      watchers.add(client.getWatchClient().watch(bytes("jetcd/many/" + i % 10), option, response -> {
        if (response.isCreatedNotify()) {
          created.countDown();
        }
        response.getEvents().forEach(event -> events.countDown());
      }));
    }
    created.await();
    saw(WATCHERS, "watchers");
    for (int i = 0; i < 10; i++) {
      saw("put at", get(kv.put(bytes("jetcd/many/" + i), bytes("x"))).getHeader().getRevision() - base);
    }
    events.await();
    saw("each had its event");
    long lease = get(client.getLeaseClient().grant(60)).getID();
    ByteSequence held = get(client.getLockClient().lock(bytes("jetcd/door"), lease)).getKey();
    get(client.getLockClient().unlock(held));
    saw("locked and unlocked");
    watchers.forEach(Watch.Watcher::close);
  }
}
