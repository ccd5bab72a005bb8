# shellcheck shell=bash
# Values that depend on the hardware: queues of network cards, their interrupts, the cores' clocks. Reading only.
#
# Each device_NAME is given a path without ROOT and leaves in REPLY what should stand there, or nothing where the setting
# is none of ours.

# count_queues CARD rx|tx: the queues of a card in REPLY.
count_queues() {
    local queues=("$ROOT/sys/class/net/$1/queues/$2"-*)
    REPLY=${#queues[@]}
}

# is_hardware CARD: whether it is a card, and not a bridge, a tunnel or the loopback interface.
is_hardware() {
    [[ -e $ROOT/sys/class/net/$1/device ]]
}

# count_nics_short_of_queues: cards with fewer receive queues than there are cores.
count_nics_short_of_queues() {
    local folder card count=0
    for folder in "$ROOT"/sys/class/net/*; do
        card=${folder##*/}
        is_hardware "$card" || continue
        count_queues "$card" rx
        ((REPLY == 0 || REPLY >= CPUS)) || count=$((count + 1))
    done
    REPLY=$count
}

# mask_of STEP FIRST: the cores FIRST, FIRST + STEP, … as a mask: groups of 32 bits, the highest first.
mask_of() {
    local step=$1 cpu group mask=''
    local -a groups=()
    for ((group = 0; group <= (CPUS - 1) / 32; group++)); do
        groups[group]=0
    done
    for ((cpu = $2; cpu < CPUS; cpu += step)); do
        groups[cpu / 32]=$((groups[cpu / 32] | 1 << cpu % 32))
    done
    for ((group = (CPUS - 1) / 32; group >= 0; group--)); do
        printf -v mask '%s%08x' "${mask:+$mask,}" "${groups[group]}"
    done
    REPLY=$mask
}

# same_mask ONE OTHER: whether two values are the same; of masks the kernel shows as many digits as it has cores for.
same_mask() {
    local one=${1//[,]/} other=${2//[,]/}
    one=${one##+(0)} other=${other##+(0)}
    [[ ${one,,} == "${other,,}" ]]
}

# card_of PATH, queue_of PATH: of /sys/class/net/eth0/queues/rx-3/rps_cpus, eth0 and 3.
card_of() {
    REPLY=${1#/sys/class/net/}
    REPLY=${REPLY%%/*}
}

queue_of() {
    REPLY=${1%/*}
    REPLY=${REPLY##*-}
}

device_rps_mask() {
    local card
    card_of "$1"
    card=$REPLY REPLY=''
    is_hardware "$card" || return 0
    count_queues "$card" rx
    if ((REPLY >= CPUS)); then
        REPLY=''
    else
        mask_of 1 0
    fi
}

device_rps_flow_count() {
    local card queues
    card_of "$1"
    card=$REPLY REPLY=''
    is_hardware "$card" || return 0
    count_queues "$card" rx
    queues=$REPLY
    REPLY=''
    ((queues >= CPUS)) || REPLY=$((32768 / queues))
}

device_xps_mask() {
    local card queues
    card_of "$1"
    card=$REPLY REPLY=''
    is_hardware "$card" || return 0
    count_queues "$card" tx
    queues=$REPLY REPLY=''
    ((queues > 1)) || return 0
    queue_of "$1"
    # A card may have more queues than there are cores: the later ones stay as they are.
    if ((REPLY >= CPUS)); then
        REPLY=''
    else
        mask_of "$queues" "$REPLY"
    fi
}

device_governor() {
    first_line "$ROOT${1%/*}/scaling_available_governors"
    if [[ " $REPLY " == *' performance '* ]]; then
        REPLY=performance
    else
        REPLY=''
    fi
}

# device_irq_core: interrupt i of the queues of a card goes to core i.
device_irq_core() {
    local irq=${1#/proc/irq/} folder card
    local -a irqs
    irq=${irq%%/*}
    for folder in "$ROOT"/sys/class/net/*; do
        card=${folder##*/}
        is_hardware "$card" || continue
        queue_interrupts "$card"
        irqs=("${QUEUE_IRQS[@]}")
        ((${#irqs[@]} > 1)) || continue
        for REPLY in "${!irqs[@]}"; do
            if [[ ${irqs[REPLY]} == "$irq" ]]; then
                REPLY=$((REPLY % CPUS))
                return
            fi
        done
    done
    REPLY=''
}

# queue_interrupts CARD: the interrupts of its queues in QUEUE_IRQS, in the order of the queues. A queue with an interrupt
# for each direction has both on one core.
declare -A QUEUE_IRQS_OF=()
queue_interrupts() {
    local folder irq name numbers=''
    if [[ -z ${QUEUE_IRQS_OF[$1]+known} ]]; then
        # The interrupts of a virtio card belong to the bus device above it.
        for folder in "$ROOT/sys/class/net/$1/device/msi_irqs" "$ROOT/sys/class/net/$1/device/../msi_irqs"; do
            [[ -d $folder ]] || continue
            for irq in "$folder"/*; do
                irq=${irq##*/}
                interrupt_name "$irq"
                name=${REPLY,,}
                # Those of configuration and events stay where they are, and so do the sending halves.
                case $name in
                    *config* | *ctrl* | *control* | *async* | *mgmt* | *output* | *tx-[0-9]* | '') ;;
                    *input* | *txrx* | *rx* | *comp* | *queue* | *"$1"-[0-9]*) numbers+=" $irq" ;;
                esac
            done
            break
        done
        QUEUE_IRQS_OF[$1]=$(tr ' ' '\n' <<<"$numbers" | sort -n | tr '\n' ' ')
    fi
    read -ra QUEUE_IRQS <<<"${QUEUE_IRQS_OF[$1]}"
}

# interrupt_name IRQ: its last words in /proc/interrupts.
interrupt_name() {
    REPLY=$(awk -v irq="$1:" '$1 == irq { print $NF }' "$ROOT/proc/interrupts" 2>/dev/null)
}

# irqbalance_runs: whether it does.
irqbalance_runs() {
    local folder
    for folder in "$ROOT"/proc/[0-9]*; do
        first_line "$folder/comm"
        [[ $REPLY != irqbalance ]] || return 0
    done
    return 1
}
