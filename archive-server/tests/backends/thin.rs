//! The thin backend, where there is a pool: `WALB_TEST_THIN=VG/POOL` (`tests/lvm-thin` makes one).

use super::*;

/// The backend on the pool that the environment names; else the test says that it is skipped.
fn backend(test: &str) -> Option<(BackendChoice, String)> {
    let Ok(name) = std::env::var("WALB_TEST_THIN") else {
        skip::skip(test, "needs an LVM thin pool: run tests/lvm-thin as root");
        return None;
    };
    let (vg, pool) = name.split_once('/').unwrap();
    let choice = BackendChoice::LvmThin { vg: vg.into(), pool: pool.into() };
    Some((choice, name))
}

fn lv_names(pool: &str) -> Vec<String> {
    let (vg, _) = pool.split_once('/').unwrap();
    let names = run("lvm", &["lvs", "--noheadings", "-o", "lv_name", vg]);
    names.lines().map(|name| name.trim().to_owned()).collect()
}

/// Bytes of data in the pool.
fn used(pool: &str) -> u64 {
    let fields = ["--units", "b", "--nosuffix", "--noheadings", "-o", "lv_size,data_percent"];
    let report = run("lvm", &[&["lvs"], &fields[..], &[pool]].concat());
    let numbers: Vec<f64> = report.split_whitespace().map(|n| n.parse().unwrap()).collect();
    (numbers[0] * numbers[1] / 100.0) as u64
}

// One after the other: they share the pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thin_volumes_are_base_images() {
    let Some((backend, pool)) = backend("thin_volumes_are_base_images") else { return };
    let tmp = tempfile::tempdir().unwrap();
    let before = lv_names(&pool);
    keeps_its_promises(tmp.path(), &backend, true).await;
    assert_eq!(lv_names(&pool), before, "a clear leaves nothing");
    gives_space_back(&tmp.path().join("space"), &backend, || used(&pool)).await;
    run("lvm", &["lvremove", "-y", "-q", &format!("{}/walb.vol0.base", vg(&pool))]);
    what_is_half_made_goes(&tmp.path().join("half"), &backend, &pool).await;
    run("lvm", &["lvremove", "-y", "-q", &format!("{}/walb.vol0.base", vg(&pool))]);
    a_full_pool_refuses(&tmp.path().join("full"), &backend, &pool).await;
}

fn vg(pool: &str) -> &str {
    pool.split_once('/').unwrap().0
}

async fn what_is_half_made_goes(base: &Path, backend: &BackendChoice, pool: &str) {
    std::fs::create_dir(base).unwrap();
    let device = device(9, 2);
    let archive = start(base, backend);
    drop(filled(&archive, &device).await);
    archive.kill();
    let vg = vg(pool);
    let snapshot = |name: &str, tag: &str| {
        let tag = format!("walb.archive={tag}");
        let of = format!("{vg}/walb.vol0.base");
        run("lvm", &["lvcreate", "-y", "-q", "-s", "-n", name, "--addtag", &tag, &of]);
    };
    snapshot("walb.vol0.restoring-1", "a0");
    snapshot("walb.vol0.mount-4", "a0");
    snapshot("walb.vol1.base", "a0");
    snapshot("walb.vol0.mount-5", "a1");
    // As after a start of the host: nothing is active.
    run("lvm", &["lvchange", "-an", &format!("{vg}/walb.vol0.base")]);
    let archive = start(base, backend);
    let mut client = archive.client();
    // It answers when the start has ended.
    assert_eq!(client.get().await.mended.len(), 1);
    let left = lv_names(pool);
    for (name, stays) in [
        ("walb.vol0.restoring-1", false),
        ("walb.vol0.mount-4", false),
        ("walb.vol1.base", true),
        ("walb.vol0.mount-5", true),
    ] {
        assert_eq!(left.iter().any(|n| n == name), stays, "{name}: {left:?}");
    }
    restore(&mut client, 2, device.now()).await;
    delete(&mut client, 2).await;
    run("lvm", &["lvremove", "-y", "-q", &format!("{vg}/walb.vol1.base")]);
    run("lvm", &["lvremove", "-y", "-q", &format!("{vg}/walb.vol0.mount-5")]);
}

/// I10: a pool that is almost full stops what comes in, and lets it in again by itself.
async fn a_full_pool_refuses(base: &Path, backend: &BackendChoice, pool: &str) {
    std::fs::create_dir(base).unwrap();
    let device = device(11, 1);
    let archive = start(base, backend);
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    let vg = vg(pool);
    let name = pool.split_once('/').unwrap().1;
    run("lvm", &["lvcreate", "-y", "-q", "-V", "2g", "--thinpool", name, "-n", "filler", vg]);
    let filler = format!("/dev/{vg}/filler");
    // Until it is full.
    let _ = Command::new("dd")
        .args(["if=/dev/urandom", &format!("of={filler}"), "bs=1M", "oflag=direct"])
        .output();
    // A start looks at the pool at once, a running archive every few seconds.
    archive.kill();
    let archive = start(base, backend);
    let mut client = archive.client();
    let refused = client.send_step(&device, 1).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::NoSpace, "{refused}");
    assert!(refused.message().contains("thin pool"), "{refused}");
    assert!(client.get().await.error.contains("thin pool"));
    run("lvm", &["lvremove", "-y", "-q", &format!("{vg}/filler")]);
    until("acceptance", || {
        let (mut client, device) = (client.clone(), &device);
        async move { client.send_step(device, 1).await.ok() }
    })
    .await;
    client.apply(1).await.unwrap();
    restore(&mut client, 1, device.now()).await;
    delete(&mut client, 1).await;
    client.archive.stop(stop()).await.unwrap();
    client.archive.clear(volume()).await.unwrap();
}
