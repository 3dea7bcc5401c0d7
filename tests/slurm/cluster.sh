#!/usr/bin/env bash
# A real Slurm of two nodes, n1 and n2, on this machine: `cluster.sh up`, `cluster.sh down`, `cluster.sh status`.
# Needs root and Debian's slurm-wlm and munge (apt-get install slurm-wlm munge). Each node claims four cores, however
# many there are, and two GPUs that do not exist: enough for Slurm to hand them out.
set -euo pipefail

STATE=/var/tmp/mdaug-slurm
CONF=/etc/slurm/slurm.conf
MARK="# written by mdaug's tests/slurm/cluster.sh"

fail() { echo "cluster.sh: $*" >&2; exit 1; }

write_conf() {
  if [ -e $CONF ] && ! grep -qF "$MARK" $CONF; then
    fail "$CONF belongs to another Slurm; this one would replace it"
  fi
  mkdir -p /etc/slurm $STATE/ctld $STATE/n1 $STATE/n2
  cat > $CONF <<CONF
$MARK
ClusterName=mdaug
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmctldPort=17000
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/%n/slurmd.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/%n/slurmd.log
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/%n
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=8000
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=task=1
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=20
KillWait=15
MinJobAge=60
JobRequeue=1
OverTimeLimit=0
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=4 RealMemory=32000 Gres=gpu:2 State=UNKNOWN
PartitionName=normal Nodes=n[1-2] Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=patient Nodes=n[1-2] MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
  touch $STATE/gpu0 $STATE/gpu1
  echo "NodeName=n[1-2] Name=gpu File=$STATE/gpu[0-1]" > /etc/slurm/gres.conf
}

stop_daemon() { # PIDFILE
  [ -e "$1" ] || return 0
  local pid
  pid=$(cat "$1")
  kill "$pid" 2> /dev/null || true
  for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null || break; sleep 0.1; done
  rm -f "$1"
}

ours() { grep -qsF "$MARK" "${SLURM_CONF:-$CONF}" && scontrol ping 2> /dev/null | grep -q "is UP"; }

up() {
  [ "$(id -u)" = 0 ] || fail "needs root"
  command -v slurmctld > /dev/null && command -v munged > /dev/null || fail "needs: apt-get install slurm-wlm munge"
  if ours; then echo "Slurm is up"; return; fi
  if scontrol ping 2> /dev/null | grep -q "is UP"; then fail "what is up belongs to another Slurm"; fi
  write_conf
  # A rank finds rank 0 by the name of its node.
  grep -qw n1 /etc/hosts || echo "127.0.0.1 n1 n2" >> /etc/hosts
  if ! munge -n > /dev/null 2>&1; then
    [ -s /etc/munge/munge.key ] || fail "/etc/munge/munge.key is missing; run mungekey"
    install -d -o munge -g munge -m 755 /run/munge
    runuser -u munge -- munged
  fi
  slurmctld -c
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 100); do
    if [ "$(sinfo --noheader --Node --partition=normal --format=%T 2> /dev/null | grep -c idle)" = 2 ]; then
      sinfo
      return
    fi
    sleep 0.2
  done
  tail -n 20 $STATE/slurmctld.log $STATE/n?/slurmd.log >&2
  fail "the nodes did not become idle"
}

down() {
  if ours; then
    scancel --user=root 2> /dev/null || true
    sleep 1
  fi
  stop_daemon $STATE/n1/slurmd.pid
  stop_daemon $STATE/n2/slurmd.pid
  stop_daemon $STATE/slurmctld.pid
  if grep -qsF "$MARK" $CONF; then rm -f $CONF /etc/slurm/gres.conf; fi
  rm -rf $STATE
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  ours) ours ;;
  status) sinfo && squeue ;;
  *) fail "usage: cluster.sh up|down|status" ;;
esac
