// Has the client etcd3 for Node do what programs do with it, and prints what it sees; compare.py runs it
// on etcd and on the ring. Revisions are counted from the begin.
import { once } from 'node:events';
import { Etcd3, EtcdLockFailedError } from 'etcd3';

const hosts = process.argv[2].split(',').map((host) => `http://${host}`);
const client = new Etcd3({ hosts });
const saw = (...words) => console.log(words.join(' '));

/** How something was refused. */
async function refused(what, awaited) {
  try {
    await awaited;
    saw(what, 'not refused');
  } catch (error) {
    saw(what, error.constructor.name, error.message);
  }
}

async function pairs(base) {
  const at = (revision) => Number(revision) - base;
  for (let i = 0; i < 10; i++) {
    const put = await client.put(`node/k${i % 7}`).value(`v${i}`);
    saw('put at', at(put.header.revision));
  }
  saw('one', await client.get('node/k1').string(), 'none', await client.get('node/none').string());
  for (const order of ['Ascend', 'Descend']) {
    for (const target of ['Key', 'Version', 'Create', 'Mod', 'Value']) {
      saw(order, target, await client.getAll().prefix('node/k').sort(target, order).keys());
    }
  }
  saw('limited', JSON.stringify(await client.getAll().prefix('node/').limit(2).strings()));
  saw('of the past', await client.get('node/k1').revision(base + 2).string());
  saw('count', await client.getAll().prefix('node/').count());
  const deleted = await client.delete().prefix('node/k').getPrevious();
  saw('deleted', deleted.map((kv) => kv.value.toString()));
  await refused('of the future', client.get('node/k1').revision(base + 1000).string());
  await refused('no such lease', client.put('node/x').lease(4711).value('x').exec());
}

async function transactions() {
  await client.put('node/t').value('1');
  for (const [target, operator, value] of [['Value', '==', '1'], ['Value', '!=', '1'], ['Version', '>', 0], ['Create', '==', 0]]) {
    const answer = await client.if('node/t', target, operator, value)
      .then(client.put('node/yes').value('y'), client.get('node/t')).else(client.get('node/t')).commit();
    saw(target, operator, value, answer.succeeded, answer.responses.map((one) => one.response));
  }
  const moved = await client.stm({ retries: 20 }).transact(async (tx) => {
    const before = await tx.get('node/t').string();
    await tx.put('node/t').value(`${before}+`);
    return before;
  });
  saw('moved', moved, await client.get('node/t').string());
}

async function watches(base) {
  const seen = [];
  for (let i = 0; i < 3; i++) {
    await client.put('node/w').value(`${i}`);
  }
  const watcher = await client.watch().prefix('node/w').startRevision(`${base + 1}`).withPreviousKV().create();
  const ended = new Promise((resolve) => {
    watcher.on('put', (kv, previous) => {
      seen.push(`put ${kv.value} after ${previous ? previous.value : ''}`);
      if (kv.value.toString() === 'end') {
        resolve();
      }
    });
    watcher.on('delete', (kv, previous) => seen.push(`delete ${kv.key} after ${previous.value}`));
  });
  await client.delete().key('node/w');
  await client.put('node/w').value('end');
  await ended;
  await watcher.cancel();
  seen.forEach((line) => saw(line));
}

async function leases() {
  const lease = client.lease(20, { autoKeepAlive: false });
  await lease.put('node/leased').value('x');
  saw('renewed to', (await lease.keepaliveOnce()).TTL, 'has a key', await client.get('node/leased').exists());
  await lease.revoke();
  saw('revoked', await client.get('node/leased').exists());
  const short = client.lease(2, { autoKeepAlive: false });
  const watcher = await client.watch().key('node/short').create();
  const gone = once(watcher, 'delete');
  await short.put('node/short').value('x');
  await gone;
  await watcher.cancel();
  saw('ran out', await client.get('node/short').exists());
  const kept = client.lease(2);
  let renewals = 0;
  await kept.grant();
  await new Promise((resolve) => {
    kept.on('keepaliveSucceeded', () => {
      renewals += 1;
      if (renewals === 3) {
        resolve();
      }
    });
  });
  saw('kept', kept.revoked());
  await kept.revoke();
}

async function locks() {
  await client.put('node/number').value('0');
  const add = () => client.lock('node/lock').ttl(20).do(async () => {
    const number = Number(await client.get('node/number').string());
    await client.put('node/number').value(`${number + 1}`);
  });
  // A client that does not get it at once is refused, and tries again.
  const untilDone = async () => {
    for (;;) {
      try {
        return await add();
      } catch (error) {
        if (!(error instanceof EtcdLockFailedError)) {
          throw error;
        }
      }
    }
  };
  await Promise.all(Array.from({ length: 5 }, untilDone));
  saw('counted', await client.get('node/number').string());
}

async function elections() {
  const office = client.election('node/office', 20);
  const first = office.campaign('first');
  await first.wait();
  saw('leader', await office.leader());
  const observer = await office.observe();
  const second = office.campaign('second');
  // The client says this once, and it can be before the first one's resignation has been answered.
  const elected = second.wait();
  await second.getCampaignKey();
  const changed = new Promise((resolve) => {
    observer.on('change', (value) => value === 'second' && resolve());
  });
  await first.resign();
  await elected;
  await changed;
  saw('leader', await office.leader(), 'observed', observer.leader());
  await observer.cancel();
  await second.resign();
}

async function manyWatches() {
  const count = 500;
  const watchers = await Promise.all(
    Array.from({ length: count }, (_, i) => client.watch().key(`node/many/${i}`).create()));
  const all = Promise.all(watchers.map((watcher) => once(watcher, 'put')));
  for (let i = 0; i < count; i++) {
    await client.put(`node/many/${i}`).value('x');
  }
  saw('watched', (await all).length);
  await Promise.all(watchers.map((watcher) => watcher.cancel()));
}

async function users() {
  const role = client.role('team');
  await role.create();
  await role.grant({ permission: 'Readwrite', range: client.range ? client.range({ prefix: 'node/team/' }) : { start: 'node/team/', end: 'node/team0' } });
  saw('roles', (await client.getRoles()).map((one) => one.name));
  const user = client.user('alice');
  await user.create('secret');
  await user.addRole('team');
  saw('users', (await client.getUsers()).map((one) => one.name), 'has', (await user.roles()).map((one) => one.name));
  await refused('again', client.role('team').create());
  await user.delete();
  await role.delete();
}

for (const scenario of [pairs, transactions, watches, leases, locks, elections, manyWatches, users]) {
  await client.delete().prefix('node/');
  const begin = await client.put('node/begin').value('');
  saw('--', scenario.name);
  await scenario(Number(begin.header.revision));
}
client.close();
