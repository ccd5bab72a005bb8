# shellcheck shell=bash
# One row for each thing that is looked at: what it is now, what is wanted, and whether that fits. Changes nothing.
#
# Statuses: ok; drift, which apply mends or a person must; harmful; note, for a person to know; absent, where this kernel
# or container has no such setting; failed, where it could not be read or set.

ROW_KEY=() ROW_STATUS=() ROW_NOW=() ROW_WANTED=() ROW_NOTE=() ROW_SCOPE=()
ROW_SET=()     # what apply writes; nothing where there is nothing to do
ROW_SETTING=() # the number in TABLE; 0 for what is no setting
ROW_WISH=()    # what the setting was compared with

# add_row KEY STATUS NOW WANTED SCOPE NOTE [SET SETTING WISH]
add_row() {
    ROW_KEY+=("$1") ROW_STATUS+=("$2") ROW_NOW+=("$3") ROW_WANTED+=("$4") ROW_SCOPE+=("$5") ROW_NOTE+=("$6")
    ROW_SET+=("${7:-}") ROW_SETTING+=("${8:-0}") ROW_WISH+=("${9:-}")
}

# gather_settings: a row for each setting of the chosen profiles.
gather_settings() {
    local number path paths
    find_boot_overrides
    for ((number = 1; number <= SETTINGS_COUNT; number++)); do
        in_profiles "$number" || continue
        [[ ${TABLE[$number,operator]} != leave ]] || continue
        if [[ ${TABLE[$number,key]} == *'*'* ]]; then
            # No match is no device of that kind.
            mapfile -t paths < <(compgen -G "$ROOT${TABLE[$number,key]}" | sort -V)
            for path in "${paths[@]}"; do
                judge "$number" "${path#"$ROOT"}"
            done
        else
            judge "$number" "${TABLE[$number,key]}"
        fi
    done
}

# judge NUMBER KEY: adds the row of one setting, where it counts here.
judge() {
    local number=$1 key=$2 scope=${TABLE[$1,scope]} now='' wanted='' wish='' set='' status=ok note=''
    [[ $PLACE != namespace || $scope == namespace ]] || return 0
    formula "${TABLE[$number,when]:-1}"
    ((REPLY != 0)) || return 0
    if [[ -n ${TABLE[$number,computed]:-} ]]; then
        "device_${TABLE[$number,computed]}" "$key"
        [[ -n $REPLY ]] || return 0
        wanted=$REPLY
    elif [[ -n ${TABLE[$number,words]:-} ]]; then
        wanted=${TABLE[$number,words]}
    else
        wanted_numbers "$number"
        wanted=$REPLY
    fi
    if [[ $scope == unit ]]; then
        judge_unit "$number" "$key" "$wanted"
        return
    fi
    setting_path "$key"
    if [[ ! -e $REPLY ]]; then
        note='this kernel has no such setting, or its module is not loaded'
        [[ $PLACE != container ]] || note='only the host of this container shows it'
        compare "$number" '' "$wanted"
        add_row "$key" absent '-' "$WANTED" "$scope" "$note" '' "$number"
        return
    fi
    read_setting "$key"
    now=$REPLY
    if [[ -z $now ]]; then
        add_row "$key" failed '?' "$wanted" "$scope" "it cannot be read: $ROOT${key} gives nothing" '' "$number"
        return
    fi
    compare "$number" "$now" "$wanted"
    set=$SET wish=$WANTED
    if [[ -n $set ]]; then
        status=drift
        if [[ ${TABLE[$number,computed]:-} == irq_core ]] && irqbalance_runs; then
            status=note set='' note='irqbalance runs and would undo it: stop it, or have it leave this interrupt alone'
        elif [[ " ${LAST_APPLY[refused]:-} " == *" $key "* ]]; then
            status=note note='the kernel refused it at the last apply'
        fi
    elif [[ -n ${BOOT_OVERRIDES[$key]:-} ]]; then
        compare "$number" "${BOOT_OVERRIDES[$key]#*$'\t'}" "$wanted"
        if [[ -n $SET ]]; then
            status=drift
            note="at boot ${BOOT_OVERRIDES[$key]%%$'\t'*} sets ${BOOT_OVERRIDES[$key]#*$'\t'}, after $SYSCTL_FILE: change it there"
        fi
    fi
    add_row "$key" "$status" "$now" "$wish" "$scope" "$note" "$set" "$number" "$wanted"
}

# wanted_numbers NUMBER: the values of a setting, with commas between those of several fields.
wanted_numbers() {
    local part all=''
    local -a parts
    IFS=, read -ra parts <<<"${TABLE[$1,value]}"
    for part in "${parts[@]}"; do
        wanted_number "$1" "$part"
        all+=${all:+, }$REPLY
    done
    REPLY=$all
}

# compare NUMBER NOW WANTED: leaves in SET what has to be written, or nothing, and in WANTED the wish in words.
compare() {
    local number=$1 now=$2 word at
    local -a operators fields wishes result=()
    SET='' WANTED=''
    if [[ -n ${TABLE[$number,words]:-} ]]; then
        WANTED=${3// / or }
        for word in $3; do
            [[ $now != "$word" ]] || return 0
        done
        SET=${3%% *}
        return
    fi
    IFS=', ' read -ra operators <<<"${TABLE[$number,operator]}"
    IFS=', ' read -ra wishes <<<"$3"
    if [[ ${operators[0]} == exact && ${#operators[@]} == 1 ]]; then
        WANTED=$3
        same_mask "$now" "$3" || SET=$3
        return
    fi
    read -ra fields <<<"$now"
    for at in "${!wishes[@]}"; do
        result[at]=${fields[at]:-}
        case ${operators[at]} in
            at-least)
                WANTED+="${WANTED:+, }>= ${wishes[at]}"
                is_less "${fields[at]:-0}" "${wishes[at]}" && result[at]=${wishes[at]}
                ;;
            at-most)
                WANTED+="${WANTED:+, }<= ${wishes[at]}"
                is_less "${wishes[at]}" "${fields[at]:-0}" && result[at]=${wishes[at]}
                ;;
            exact)
                WANTED+="${WANTED:+, }${wishes[at]}"
                result[at]=${wishes[at]}
                ;;
        esac
    done
    [[ "${result[*]}" == "${fields[*]:0:${#wishes[@]}}" ]] || SET="${result[*]}"
}

# is_less ONE OTHER: of whole numbers of any size; the largest limits pass what the shell can count to.
is_less() {
    [[ $1 != infinity ]] || return 1
    if ((${#1} != ${#2})); then
        ((${#1} < ${#2}))
    else
        [[ $1 < $2 ]]
    fi
}

# judge_unit NUMBER NAME WANTED: a limit of ringmesh.service, as its files say it. SET is what our drop-in should say; a
# value that it has is never lowered there.
judge_unit() {
    local number=$1 name=$2 wanted=$3 now others ours status=ok set='' note=''
    unit_value "$name" with-ours
    now=$REPLY
    unit_value "$name" without-ours
    others=$REPLY
    unit_value "$name" only-ours
    ours=$REPLY
    if [[ -z $others ]] || is_less "$others" "$wanted"; then
        set=$wanted
        [[ -z $ours ]] || ! is_less "$wanted" "$ours" || set=$ours
    fi
    if [[ -z $now ]] || is_less "$now" "$wanted"; then
        status=drift
        if [[ -n $ours ]] && ! is_less "$ours" "$wanted"; then
            note="a drop-in that is read after $UNIT_FILE sets it"
        fi
    fi
    add_row "$name" "$status" "${now:-not set}" ">= $wanted" unit "${note:-of $UNIT}" "$set" "$number"
}

# find_boot_overrides: for each key, in BOOT_OVERRIDES, the file and the value of the last line about it that is read at
# boot after our own file.
declare -A BOOT_OVERRIDES=()
find_boot_overrides() {
    local at file
    for at in "${!BOOT_KEY[@]}"; do
        file=${BOOT_FILE[at]}
        if [[ ${file##*/} > "${SYSCTL_FILE##*/}" || $file == /etc/sysctl.conf ]]; then
            BOOT_OVERRIDES[${BOOT_KEY[at]}]=$file$'\t'${BOOT_VALUE[at]}
        fi
    done
}

# gather_harmful: a row for each harmful value that is in force or stands in a file that is read at boot.
gather_harmful() {
    local at line key better
    for ((at = 1; at <= HARMFUL_COUNT; at++)); do
        key=${HARMFUL[$at,key]} better=${HARMFUL[$at,better]}
        read_setting "$key"
        if [[ -n $REPLY ]] && is_harmful "$at" "$REPLY"; then
            add_row "$key" harmful "$REPLY" "$better" namespace "in force. ${HARMFUL[$at,reason]}"
        fi
        for line in "${!BOOT_KEY[@]}"; do
            [[ ${BOOT_KEY[line]} == "$key" ]] || continue
            if [[ ${HARMFUL[$at,harmful]} == literal ]] || is_harmful "$at" "${BOOT_VALUE[line]}"; then
                add_row "$key" harmful "${BOOT_VALUE[line]}" "$better" namespace \
                    "in ${BOOT_FILE[line]}, read at boot. ${HARMFUL[$at,reason]}"
            fi
        done
    done
}

# count_rows STATUS…: how many rows have one of these statuses.
count_rows() {
    local status wanted count=0
    for status in "${ROW_STATUS[@]}"; do
        for wanted in "$@"; do
            [[ $status != "$wanted" ]] || count=$((count + 1))
        done
    done
    REPLY=$count
}
