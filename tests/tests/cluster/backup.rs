//! A node whose disk is lost comes back as itself.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Result, ensure};
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _};

use crate::commands::{planaria, text};
use crate::{binary, demo_models};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_restored_as_itself_and_taken_for_no_ghost() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    for (name, memory) in [("stays", "256MiB"), ("lost", "384MiB")] {
        cluster.start(NodeSpec::new(name, memory).with(&["--model", "demo"])).await?;
    }
    cluster.ready("demo", 2).await?;
    let file = cluster.folder().join("lost.backup");
    let (file_text, folder) = (file.display().to_string(), cluster.data_dir("lost"));
    let data_dir = folder.display().to_string();
    let api = cluster.node(1)?.api.url().to_owned();

    // While it runs it writes the copy itself.
    let made = planaria(&["backup", &file_text, "--data-dir", &data_dir, "--api", &api]).await?;
    ensure!(made.status.success(), "{}", text(&made.stderr));
    ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o077 == 0, "others can read it");
    let wrong = cluster.node(0)?.api.url().to_owned();
    let asked = ["backup", &file_text, "--data-dir", &data_dir, "--api", &wrong];
    let said = text(&planaria(&asked).await?.stderr);
    ensure!(said.contains("keeps its data elsewhere"), "{said}");
    let refused = planaria(&["restore", &file_text, "--data-dir", &data_dir]).await?;
    let said = text(&refused.stderr);
    ensure!(!refused.status.success() && said.contains("another planaria node runs"), "{said}");

    // It lives on for a while, so that the backup is older than its last life.
    cluster.node(1)?.process.kill().await?;
    cluster.restart(1).await?;
    cluster.ready("demo", 2).await?;
    let before = cluster.node(1)?.api.cluster().await?.node;
    cluster.node(1)?.process.kill().await?;
    let refused = planaria(&["restore", &file_text, "--data-dir", &data_dir]).await?;
    let said = text(&refused.stderr);
    ensure!(!refused.status.success() && said.contains("not empty"), "{said}");
    std::fs::remove_dir_all(&folder)?;
    let restored = planaria(&["restore", &file_text, "--data-dir", &data_dir]).await?;
    ensure!(restored.status.success(), "{}", text(&restored.stderr));

    // And once more from a store that nobody has open.
    let again = planaria(&["backup", &file_text, "--data-dir", &data_dir]).await?;
    ensure!(again.status.success(), "{}", text(&again.stderr));

    cluster.restart(1).await?;
    cluster.ready("demo", 2).await?;
    let after = cluster.node(1)?.api.cluster().await?.node;
    ensure!(after.id == before.id, "another node: {after:?}");
    ensure!(after.incarnation > before.incarnation, "{after:?} is no younger than {before:?}");
    Ok(())
}
