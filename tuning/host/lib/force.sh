# shellcheck shell=bash
# What is in force, beside the settings: limits of the running gateway, listen queues, what the kernel has dropped.

COUNTERS='ListenOverflows ListenDrops SyncookiesSent'

gather_in_force() {
    gather_limits
    gather_listen_queue
    gather_counters
    gather_fill
    gather_hints
}

# gather_limits: the limits of each running gateway.
gather_limits() {
    local pid pids nofile memlock soft hard locked
    [[ ,$PROFILES, == *,server,* ]] || return 0
    pids=$(running_nodes) || exit 2
    if [[ -z $pids ]]; then
        add_row 'process' note '-' '-' unit 'no gateway runs here: its limits and its listen queue were not looked at'
        return
    fi
    wanted_of LimitNOFILE
    nofile=$REPLY
    wanted_of LimitMEMLOCK
    memlock=$REPLY
    for pid in $pids; do
        # The columns of the names have blanks in them; the limits stand at fixed places (proc(5)).
        read -r soft hard locked < <(awk '
            /^Max open files/ { soft = $4; hard = $5 }
            /^Max locked memory/ { locked = $4 }
            END { print soft, hard, locked }
        ' "$ROOT/proc/$pid/limits")
        judge_limit "process/$pid/nofile" "$hard" "$nofile" \
            "the limits of a process are set when it starts: restart $UNIT${soft:+ (soft limit $soft)}"
        judge_limit "process/$pid/memlock" "$locked" "$memlock" \
            "the limits of a process are set when it starts: restart $UNIT"
    done
}

# wanted_of KEY: the number that the table wants, or nothing when it has no such key.
wanted_of() {
    local number
    for ((number = 1; number <= SETTINGS_COUNT; number++)); do
        if [[ ${TABLE[$number,key]} == "$1" && -n ${TABLE[$number,value]:-} ]]; then
            wanted_numbers "$number"
            return
        fi
    done
    REPLY=
}

# judge_limit KEY NOW WANTED REMEDY
judge_limit() {
    local status=ok note=''
    [[ -n $3 ]] || return 0
    if [[ $2 != unlimited ]] && is_less "${2:-0}" "$3"; then
        status=drift note=$4
    fi
    add_row "$1" "$status" "${2:-?}" ">= $3" unit "$note"
}

# gather_listen_queue: the shortest of the queues of the gateway's port. ss shows their bound as Send-Q.
gather_listen_queue() {
    local shortest='' count=0 state waiting bound rest wanted
    [[ ,$PROFILES, == *,server,* || ,$PROFILES, == *,lb,* ]] || return 0
    if ! command -v ss >/dev/null; then
        add_row "listen queue :$PORT" note '?' '-' namespace 'ss is not installed (package iproute2)'
        return
    fi
    while read -r state waiting bound rest; do
        [[ $bound =~ ^[0-9]+$ ]] || continue
        count=$((count + 1))
        [[ -n $shortest ]] && ((bound >= shortest)) || shortest=$bound
    done < <(ss -Hltn "sport = :$PORT" 2>/dev/null)
    : "$state$waiting$rest"
    if ((count == 0)); then
        add_row "listen queue :$PORT" note '-' '-' namespace "nothing listens on port $PORT; --port names another"
        return
    fi
    wanted_of net.core.somaxconn
    wanted=$REPLY
    if [[ -n $wanted ]] && ((shortest < wanted)); then
        add_row "listen queue :$PORT" drift "$shortest" ">= $wanted" namespace \
            'a queue keeps the length with which it was opened: restart the program, and see that it asks for as much'
    else
        add_row "listen queue :$PORT" ok "$shortest" ">= ${wanted:-0}" namespace ''
    fi
}

# counter NAME: one of COUNTERS, or SoftnetDrops.
counter() {
    case $1 in
        SoftnetDrops) REPLY=$SOFTNET_DROPS ;;
        *) REPLY=${NETSTAT[$1]:-} ;;
    esac
}

# gather_counters: what was dropped since the last apply, or since boot.
gather_counters() {
    local name now since='since boot' status note before scope
    [[ -z ${LAST_APPLY[boot_id]:-} ]] || since='since the last apply'
    for name in $COUNTERS SoftnetDrops; do
        scope=namespace
        [[ $name != SoftnetDrops ]] || scope=host
        counter "$name"
        now=$REPLY
        [[ -n $now ]] || continue
        before=${LAST_APPLY[$name]:-0}
        # After a boot, or in a younger namespace, the counter began anew.
        [[ $now -ge $before && ${LAST_APPLY[boot_id]:-} == "$BOOT_ID" ]] || before=0
        now=$((now - before)) status=ok note=$since
        if ((now > 0)); then
            case $name in
                SyncookiesSent) note="$since: the backlog of handshakes was too short, or somebody floods" ;;
                SoftnetDrops) note="$since: a core could not keep up with the packets it was given" ;;
                *) note="$since: a listen queue of this host was full, and clients waited a second and more" ;;
            esac
            # Before the first apply it is what apply is for; after it, it should not happen any more.
            status=note
            [[ -z ${LAST_APPLY[boot_id]:-} ]] || status=drift
        fi
        add_row "$name" "$status" "$now" 0 "$scope" "$note"
    done
}

# gather_fill: how full the tables are that drop what they cannot hold.
gather_fill() {
    local count max used pressure status name rest
    read_setting net.netfilter.nf_conntrack_count
    count=$REPLY
    read_setting net.netfilter.nf_conntrack_max
    max=$REPLY
    if [[ $count =~ ^[0-9]+$ && $max =~ ^[1-9][0-9]*$ ]]; then
        status=ok
        ((count * 4 <= max * 3)) || status=drift
        add_row 'conntrack table' "$status" "$count of $max" '<= 75 %' namespace 'when it is full, new connections are dropped'
    fi
    read_setting net.ipv4.tcp_mem
    read -r rest pressure rest <<<"$REPLY"
    used=$(awk '$1 == "TCP:" { for (i = 2; i < NF; i++) if ($i == "mem") print $(i + 1) }' "$ROOT/proc/net/sockstat" 2>/dev/null)
    name='memory of all sockets'
    if [[ $used =~ ^[0-9]+$ && $pressure =~ ^[1-9][0-9]*$ ]]; then
        status=ok
        ((used * 4 <= pressure * 3)) || status=drift
        add_row "$name" "$status" "$used of $pressure pages" '<= 75 %' host 'above the second number of tcp_mem all buffers shrink'
    fi
    : "$rest"
}

# gather_hints: what a person should know, and no setting mends.
gather_hints() {
    local needed folder card
    # The gateway's own reckoning for an idle connection, the kernel's part included.
    needed=$((CONNECTIONS * 4812 / 1048576))
    if ((RAM_MIB > 0 && needed * 4 > RAM_MIB * 3)); then
        add_row memory note "$RAM_MIB MiB" ">= $((needed * 4 / 3)) MiB" host "$CONNECTIONS idle connections take $needed MiB"
    fi
    [[ $PLACE == host ]] || return 0
    for folder in "$ROOT"/sys/class/net/*; do
        card=${folder##*/}
        is_hardware "$card" || continue
        count_queues "$card" rx
        ((REPLY == 0 || REPLY >= CPUS)) ||
            add_row "queues of $card" note "$REPLY" ">= $CPUS" device "one for each core, if the card can: ethtool -L $card combined $CPUS"
    done
    first_line "$ROOT/etc/tuned/active_profile"
    [[ -z $REPLY || ! -d $ROOT/run/tuned ]] ||
        add_row tuned note "$REPLY" '-' host 'tuned keeps settings of its own, and may set some of these again'
}
