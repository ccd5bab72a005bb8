# shellcheck shell=bash
# What the host is and what it shows: reading only. Every path is taken under ROOT, which tests set to a tree of their own.

PROFILES_KNOWN='server lb loadgen redis'
CPUS=1 RAM_MIB=0 SOFTNET_DROPS=0 NICS_SHORT_OF_QUEUES=0
BOOT_ID='' PLACE='' EVIDENCE=''

# first_line FILE: its first line, or nothing; a file in /proc may vanish between the look and the read.
first_line() {
    REPLY=''
    { IFS= read -r REPLY <"$1"; } 2>/dev/null
}

# look_at_host: fills the facts that formulas use, and says in PLACE whether this is a host, a namespace or a container.
look_at_host() {
    local name value rest
    CPUS=$(grep -c '^processor' "$ROOT/proc/cpuinfo" 2>/dev/null)
    ((CPUS > 0)) || CPUS=1
    while read -r name value rest; do
        [[ $name != MemTotal: ]] || RAM_MIB=$((value / 1024))
    done <"$ROOT/proc/meminfo"
    : "$rest"
    count_softnet_drops
    SOFTNET_DROPS=$REPLY
    count_nics_short_of_queues
    # shellcheck disable=SC2034 # Formulas name it.
    NICS_SHORT_OF_QUEUES=$REPLY
    first_line "$ROOT/proc/sys/kernel/random/boot_id"
    BOOT_ID=$REPLY
    read_netstat
    read_boot_settings
    find_place
}

find_place() {
    local marker namespaces=$ROOT/proc/self/ns
    PLACE=host EVIDENCE=''
    if [[ $ASSUME_HOST == no ]]; then
        for marker in .dockerenv run/.containerenv run/systemd/container run/secrets/kubernetes.io; do
            [[ ! -e $ROOT/$marker ]] || EVIDENCE="/$marker exists"
        done
        # The first namespaces of a kernel have fixed numbers (include/linux/proc_ns.h).
        if [[ -L $namespaces/pid && $(readlink "$namespaces/pid") != 'pid:[4026531836]' ]]; then
            EVIDENCE='its processes are in a namespace of their own'
        elif [[ -L $namespaces/user && $(readlink "$namespaces/user") != 'user:[4026531837]' ]]; then
            EVIDENCE='its users are in a namespace of their own'
        fi
    fi
    if [[ -n $EVIDENCE ]]; then
        PLACE=container
    elif [[ ! -e $ROOT/proc/sys/net/core/netdev_max_backlog && -e $ROOT/proc/sys/net/core/somaxconn ]]; then
        PLACE=namespace EVIDENCE='net.core.netdev_max_backlog, which only the first one shows, is missing'
    fi
}

# place_named: PLACE in words.
place_named() {
    case $PLACE in
        host) printf 'a host' ;;
        namespace) printf 'a network namespace of its own (%s)' "$EVIDENCE" ;;
        container) printf 'a container (%s)' "$EVIDENCE" ;;
    esac
}

# count_softnet_drops: packets dropped since boot because a core's queue was full; the second column, in hexadecimal.
count_softnet_drops() {
    local sum=0 processed dropped rest
    if [[ -r $ROOT/proc/net/softnet_stat ]]; then
        while read -r processed dropped rest; do
            sum=$((sum + 16#${dropped:-0}))
        done <"$ROOT/proc/net/softnet_stat"
    fi
    : "${processed:-}${rest:-}"
    REPLY=$sum
}

# read_netstat: the counters of TcpExt in NETSTAT. Each protocol has a line of names and below it one of values.
declare -A NETSTAT=()
read_netstat() {
    local at
    local -a names=() values=()
    [[ -r $ROOT/proc/net/netstat ]] || return 0
    while read -ra values; do
        if [[ ${values[0]:-} == TcpExt: && ${names[0]:-} == TcpExt: ]]; then
            for at in "${!names[@]}"; do
                NETSTAT[${names[at]}]=${values[at]:-0}
            done
            return
        fi
        names=("${values[@]}")
    done <"$ROOT/proc/net/netstat"
}

# setting_path KEY: the file of a setting.
setting_path() {
    case $1 in
        /*) REPLY=$ROOT$1 ;;
        *) REPLY=$ROOT/proc/sys/${1//.//} ;;
    esac
}

# read_setting KEY: its value with single blanks; of a choice like "always [madvise] never" the one in brackets.
read_setting() {
    setting_path "$1"
    first_line "$REPLY"
    trim "$REPLY"
    if [[ $REPLY == *\[*\]* ]]; then
        REPLY=${REPLY#*\[}
        REPLY=${REPLY%%\]*}
    fi
}

# running_nodes: the process ids of the gateways that run here, or the one that --pid names.
running_nodes() {
    local folder
    if [[ -n $PID ]]; then
        [[ -r $ROOT/proc/$PID/limits ]] || fail "--pid $PID: there is no such process"
        printf '%s\n' "$PID"
        return
    fi
    for folder in "$ROOT"/proc/[0-9]*; do
        first_line "$folder/comm"
        [[ $REPLY != ringmesh ]] || printf '%s\n' "${folder##*/}"
    done
}

# files_in_order FOLDER…: of the .conf files in these folders under ROOT, each name from the first folder that has it, in the
# order in which they are read (sysctl.d(5), systemd.unit(5)); left in FILES.
files_in_order() {
    local folder file
    declare -A seen=()
    FILES=()
    for folder in "$@"; do
        for file in "$ROOT$folder"/*.conf; do
            [[ -n ${seen[${file##*/}]:-} ]] || seen[${file##*/}]=$file
        done
    done
    ((${#seen[@]} > 0)) || return 0
    while IFS= read -r file; do
        FILES+=("${seen[$file]}")
    done < <(printf '%s\n' "${!seen[@]}" | LC_ALL=C sort)
}

# read_boot_settings: what files say that are read at boot: BOOT_FILE, BOOT_KEY and BOOT_VALUE, in the order of the reading.
BOOT_FILE=() BOOT_KEY=() BOOT_VALUE=()
read_boot_settings() {
    local file line key
    local -a FILES
    files_in_order /etc/sysctl.d /run/sysctl.d /usr/local/lib/sysctl.d /usr/lib/sysctl.d /lib/sysctl.d
    # sysctl --system reads this one last.
    [[ ! -r $ROOT/etc/sysctl.conf ]] || FILES+=("$ROOT/etc/sysctl.conf")
    for file in "${FILES[@]}"; do
        while IFS= read -r line || [[ -n $line ]]; do
            trim "$line"
            [[ $REPLY == *=* && $REPLY != [#\;]* ]] || continue
            line=$REPLY
            trim "${line%%=*}"
            key=${REPLY#-}
            trim "${line#*=}"
            BOOT_FILE+=("${file#"$ROOT"}") BOOT_KEY+=("${key//\//.}") BOOT_VALUE+=("$REPLY")
        done <"$file"
    done
}
