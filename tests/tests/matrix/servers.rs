//! Servers that are down: F1, F3, F4, F5, F6, N1; and a group that is well.

use anyhow::ensure;

use crate::{busy_and_well, doctor, follow, group, matrix, named, well};

/// What a person does when told to start a server again.
fn start_again(cluster: &mut tests::cluster::Cluster, step: &str) -> anyhow::Result<()> {
    ensure!(step.contains("start "), "{step}");
    cluster.start_all()
}

matrix!(matrix_a_group_that_is_well_and_busy_gives_nothing, {
    let cluster = group()?;
    let writer = cluster.vol().writer(0)?;
    for _ in 0..5 {
        let (code, found) = doctor(&cluster)?;
        ensure!(code == 0 && found.is_empty(), "{code} {found:#?}");
    }
    drop(writer);
    well(&cluster)?;
});

matrix!(matrix_f1_a_storage_server_that_was_down_goes_on, {
    let mut cluster = group()?;
    cluster.kill("s0")?;
    let finding = named(&cluster, "F1")?;
    ensure!(doctor(&cluster)?.0 == 4, "nothing but a server that does not answer");
    cluster.vol().write(0, 3, 5)?;
    follow(&mut cluster, &finding, start_again)?;
    well(&cluster)?;
});

matrix!(matrix_f3_a_proxy_that_was_down_delivers_what_it_has, {
    let mut cluster = group()?;
    cluster.kill("p0")?;
    let finding = named(&cluster, "F3")?;
    busy_and_well(cluster.vol())?;
    follow(&mut cluster, &finding, start_again)?;
    well(&cluster)?;
});

matrix!(matrix_f4_with_all_proxies_down_the_log_is_kept, {
    let mut cluster = group()?;
    cluster.kill("p0")?;
    cluster.kill("p1")?;
    cluster.vol().write(0, 0, 20)?;
    cluster.vol().until_shipping_fails("s0")?;
    let finding = named(&cluster, "F4")?;
    let evidence = finding.whole["evidence"].to_string();
    ensure!(evidence.contains("the log of vol0 is"), "{evidence}");
    follow(&mut cluster, &finding, start_again)?;
    well(&cluster)?;
});

matrix!(matrix_f5_an_archive_that_was_down_gets_what_waits, {
    let mut cluster = group()?;
    cluster.kill("a0")?;
    cluster.vol().write(0, 0, 20)?;
    let finding = named(&cluster, "F5")?;
    follow(&mut cluster, &finding, start_again)?;
    well(&cluster)?;
});

matrix!(matrix_f6_proxies_that_are_full_go_on_when_the_archive_is_back, {
    // A proxy that must keep more free than there is has no room for anything.
    let full = ["--keep-free", "4096T"];
    let mut cluster = group()?;
    for proxy in ["p0", "p1"] {
        cluster.set_flags(proxy, &full)?;
    }
    cluster.shutdown("a0")?;
    cluster.vol().write(0, 0, 20)?;
    cluster.vol().until_shipping_fails("s0")?;
    let finding = named(&cluster, "F6")?;
    ensure!(finding.steps[0].contains("start a0 again"), "{finding:#?}");
    follow(&mut cluster, &finding, |cluster, _| {
        cluster.set_flags("p0", &[])?;
        cluster.set_flags("p1", &[])?;
        cluster.startup("a0")
    })?;
    well(&cluster)?;
});

matrix!(matrix_n1_a_device_role_that_was_down, {
    let mut cluster = group()?;
    cluster.kill("d0")?;
    let finding = named(&cluster, "N1")?;
    follow(&mut cluster, &finding, start_again)?;
    well(&cluster)?;
});
