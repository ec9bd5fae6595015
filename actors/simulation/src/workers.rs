//! What a node runs for its models: the node around the machine that says which workers it has.

use std::time::Duration;

use planaria_config::{Epoch, Incarnation, LayerRange};
use planaria_control::membership::View;
use planaria_control::scheduler::machine::SchedulerEvent;
use planaria_pipeline::stage::workers::{FilesMatch, WorkerNote, WorkersEvent, WorkersRuntime};
use planaria_protocol::plan::{Plan, WorkerKey};
use planaria_protocol::wire::ShardReport;

use super::host::SimulatedHost;
use super::models::new_host;
use super::{Bug, SimEvent, World};

impl World {
    /// Has the actor of a node that keeps its workers take something in, if that is there.
    pub(super) fn workers(&mut self, me: Incarnation, event: WorkersEvent) {
        let time = self.time();
        if matches!(event, WorkersEvent::Standby(_)) && self.setup.bug == Some(Bug::DropStandby) {
            return;
        }
        let Some(mut workers) = self.life(me).and_then(|life| life.workers.take()) else { return };
        workers.on(time, event, &mut Around { world: self, me });
        if let Some(life) = self.life(me) {
            life.workers = Some(workers);
        }
    }

    /// Tells that actor something.
    pub(super) fn tell_workers(&mut self, me: Incarnation, event: WorkersEvent) {
        self.after(Duration::ZERO, SimEvent::Workers(me, Box::new(event)));
    }
}

struct Around<'a> {
    world: &'a mut World,
    me: Incarnation,
}

impl WorkersRuntime for Around<'_> {
    fn files_for(&mut self, _: &WorkerKey, _: &Plan) -> Result<FilesMatch, String> {
        Ok(FilesMatch::Same)
    }

    fn start_host(
        &mut self,
        worker: &WorkerKey,
        number: u64,
        layers: Vec<LayerRange>,
    ) -> Result<(), String> {
        let (time, me) = (self.world.time(), self.me);
        if let Some(life) = self.world.life(me) {
            let host = new_host(time, me, worker, layers);
            life.hosts.insert(worker.clone(), SimulatedHost::around(number, host));
        }
        self.world.host(me, worker, |host, around| host.start(time, around));
        Ok(())
    }

    fn stop_host(&mut self, worker: &WorkerKey) {
        if self.world.setup.bug == Some(Bug::KeepUnwanted) {
            return;
        }
        let time = self.world.time();
        self.world.host(self.me, worker, |host, around| host.end(time, around));
        self.world.end_rank(self.me, worker);
        self.forget_host(worker);
    }

    fn forget_host(&mut self, worker: &WorkerKey) {
        if let Some(life) = self.world.life(self.me) {
            life.hosts.remove(worker);
        }
    }

    fn hold(&mut self, worker: &WorkerKey, layers: Vec<LayerRange>) {
        let time = self.world.time();
        self.world.host(self.me, worker, |host, around| host.want(time, layers, around));
    }

    fn join(&mut self, from: &WorkerKey, to: &WorkerKey, layers: Vec<LayerRange>) {
        let time = self.world.time();
        if let Some(life) = self.world.life(self.me) {
            life.rename_host(from, to);
        }
        self.world.host(self.me, to, |host, around| host.join(time, to, layers, around));
    }

    fn try_again(&mut self, worker: &WorkerKey) {
        let time = self.world.time();
        self.world.host(self.me, worker, |host, around| host.retry(time, around));
    }

    fn members(&mut self, worker: &WorkerKey, view: &View) {
        let time = self.world.time();
        self.world.host(self.me, worker, |host, around| host.members(time, view, around));
    }

    fn start_after(&mut self, wait: Duration, worker: &WorkerKey) {
        let again = Box::new(WorkersEvent::StartAgain(worker.clone()));
        self.world.after(wait, SimEvent::Workers(self.me, again));
    }

    fn loaded(&mut self, epoch: Epoch, result: Result<(), String>) {
        let loaded = SchedulerEvent::ShardsLoaded { epoch, result };
        self.world.after(Duration::ZERO, SimEvent::Plan(self.me, Box::new(loaded)));
    }

    fn reports(&mut self, shards: Vec<ShardReport>) {
        if let Some(life) = self.world.life(self.me) {
            life.shards = shards;
        }
        self.world.after(Duration::ZERO, SimEvent::Changed(self.me));
    }

    fn busy(&mut self, _: bool) {}

    fn restarted(&mut self) {}

    fn look_for_files(&mut self) {}

    fn time_after(&self, wait: Duration) -> String {
        format!("{:?}", self.world.now + wait)
    }

    fn note(&mut self, worker: &WorkerKey, note: WorkerNote<'_>) {
        let me = self.me;
        self.world.note(|| {
            format!(
                "{me:?}, `{}` {:?}: {note:?}",
                worker.model,
                worker
                    .ranks
                    .iter()
                    .map(|r| format!("{}:{}", r.incarnation, r.units))
                    .collect::<Vec<_>>()
            )
        });
    }
}
