//! Formats that are hashed and signed: a change here breaks every deployed certificate.

use std::sync::Arc;

use satrap_merkle::{
    BundleTree, Digest, Key, codec::Canonical, directory::Directory, history::History,
};

fn key(text: &str) -> Key {
    Key::new(text.as_bytes()).expect("a valid key")
}

fn entries() -> Vec<(Key, Arc<[u8]>)> {
    let texts = [("a", "1"), ("ab", ""), ("config/x", "on"), ("config/y", "off"), ("z", "26")];
    texts.map(|(k, v)| (key(k), Arc::from(v.as_bytes()))).to_vec()
}

fn tree(n: usize) -> BundleTree {
    BundleTree::from_sorted(&entries()[..n]).expect("the entries are sorted")
}

/// The formula in the documentation of `bundle`, written down as plainly as possible.
fn formula(entries: &[(Key, Arc<[u8]>)]) -> Digest {
    let h = |bytes: &[u8]| -> Digest {
        blake3::hash(&[b"satrap/bundle/v1".as_slice(), bytes].concat()).into()
    };
    match entries {
        [] => h(&[2]),
        [(key, value)] => {
            let key = key.as_bytes();
            let len = (key.len() as u32).to_be_bytes();
            h(&[&[0][..], &len, key, &h(&[&[3], &value[..]].concat())].concat())
        }
        _ => {
            let is_one = |key: &Key, bit: u32| {
                let byte = key.as_bytes().get(bit as usize / 8).copied().unwrap_or(0);
                byte >> (7 - bit % 8) & 1 == 1
            };
            let (first, last) = (&entries[0].0, &entries[entries.len() - 1].0);
            let bit = (0..).find(|bit| is_one(first, *bit) != is_one(last, *bit));
            let bit = bit.expect("the keys differ");
            let (l, r) = entries.split_at(entries.partition_point(|(key, _)| !is_one(key, bit)));
            h(&[&[1][..], &bit.to_be_bytes(), &formula(l), &formula(r)].concat())
        }
    }
}

#[test]
fn bundle_roots() {
    let golden = [
        "7302097f6a2e03e0392177e8f72814e81abb575f95e1a38ae296933bc322b0e3",
        "bf64c60a4099c3aa7faa6b78fc346674b31f6a7e2b4fe8f09fc8168104cf7442",
        "0165ee460d7eaacb0af1f8f5efc7dc7e7455004f271d04dd18fcb4a3d68085ea",
        "16782cbafd65630ee196ced22e88a546488c69e0efe4eb57ee9406e9eb3507fc",
        "88aa9ad90a0ea396bca4276a7d12ac62c9f7e718b92ec49c4787308662b2245a",
        "c6b181b2c9891bc5cdc65ddae332ad4ddd7f5c897f4f00b9a135b6ed3c9b269c",
    ];
    for (n, expected) in golden.iter().enumerate() {
        assert_eq!(tree(n).root(), formula(&entries()[..n]), "{n} entries");
        assert_eq!(hex::encode(tree(n).root()), *expected, "{n} entries");
    }
}

#[test]
fn bundle_proofs() {
    let tree = tree(5);
    let digest = |bytes: Vec<u8>| hex::encode(blake3::hash(&bytes).as_bytes());
    let present = digest(tree.prove(&key("config/y")).to_canonical());
    let absent = digest(tree.prove(&key("config/z")).to_canonical());
    let prefix = digest(tree.prove_prefix(b"config/").to_canonical());
    let golden = [
        "bac6a664a31482ec179c9bb44ab091a501741ecd4af6222cd4bd76206f409cc4",
        "fdbaa218679487bec516447e500a7bc0ef3817128f780b84909d4fd7bc012bba",
        "0e505d88f64ce3031d87292924369d65c506408b94288e0174423015fa625708",
    ];
    assert_eq!([present, absent, prefix], golden);
}

#[test]
fn directory_root_and_proof() {
    let names = ["a", "b", "c"];
    let directory =
        Directory::new(names.map(|n| (n.to_owned(), format!("head {n}").into_bytes())).to_vec());
    let proof = directory.prove(&["b"]).to_canonical();
    let golden = [
        "800c36ad4e69f682ed5550f82eb3b3975eaaaaae2d0ff5955854804837621b2f",
        "00000003000000010000000100000002\
         c891516ab1fcb3016cd93c8ec682927c76cc5092bdc6436f8bda6dc6b6bb0273\
         e379a10de3a426322a5239de8bce36363dfe34d6975ba782ee730390f5966694\
         00000006686561642062",
    ];
    assert_eq!([hex::encode(directory.root()), hex::encode(proof)], golden);
}

#[test]
fn history_root_and_proof() {
    let mut log = History::default();
    (0..5).for_each(|i| log.append([i; 32]));
    let proof = log.prove_consistency(4).unwrap().to_canonical();
    let golden = [
        "85e20cac1f02fda7bcdb2fc3f908568c57018c77815f1fa361acad13994f08bf",
        "000000011da033bf8927ed69376d91533748494f7f5e88c20603dede2afc9bfd43d46f17",
    ];
    assert_eq!([hex::encode(log.root()), hex::encode(proof)], golden);
}
