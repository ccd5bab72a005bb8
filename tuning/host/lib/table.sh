# shellcheck shell=bash
# The tables of settings and of harmful values: reading them, and their formulas. Changes nothing.
#
# Functions that compute leave their result in REPLY: a subshell for each would make a run take seconds.

declare -A TABLE=()   # "NUMBER,FIELD" of each setting; the field `key` names it
declare -A HARMFUL=() # the same of the harmful values
SETTINGS_COUNT=0
HARMFUL_COUNT=0

# trim TEXT: without blanks around it, and with single ones in it.
trim() {
    local words
    read -ra words <<<"$1"
    REPLY="${words[*]}"
}

# read_paragraphs FILE ARRAY "FIELDS": fills ARRAY, and PARAGRAPHS with their number.
read_paragraphs() {
    local file=$1 fields=$3 line name='' number=0 key=''
    local -n into=$2
    PARAGRAPHS=0
    [[ -r $file ]] || fail "$file: there is no such table"
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        case $line in
            '#'*) ;;
            '') key='' name='' ;;
            [!\ ]*)
                [[ -z $key ]] || fail "$file:$number: an empty line must stand before $line"
                key=$line name=''
                PARAGRAPHS=$((PARAGRAPHS + 1))
                into["$PARAGRAPHS,key"]=$key
                ;;
            '      '*)
                [[ -n $name ]] || fail "$file:$number: a continued line without a field before it"
                trim "$line"
                into["$PARAGRAPHS,$name"]+=" $REPLY"
                ;;
            *)
                [[ -n $key ]] || fail "$file:$number: a field without a key before it"
                trim "$line"
                name=${REPLY%% *}
                [[ " $fields " == *" $name "* ]] || fail "$file:$number: \"$name\" is no field; known are $fields"
                trim "${REPLY#"$name"}"
                into["$PARAGRAPHS,$name"]=$REPLY
                ;;
        esac
    done <"$file"
    ((PARAGRAPHS > 0)) || fail "$file: the table is empty"
}

load_tables() {
    local number
    read_paragraphs "$SETTINGS" TABLE \
        'operator value least most words computed when profiles scope optional reason source risk'
    SETTINGS_COUNT=$PARAGRAPHS
    read_paragraphs "$HERE/harmful" HARMFUL 'harmful better reason source'
    HARMFUL_COUNT=$PARAGRAPHS
    for ((number = 1; number <= SETTINGS_COUNT; number++)); do
        check_setting "$number"
    done
}

# check_setting NUMBER: ends the program when the setting makes no sense, or is known to do harm.
check_setting() {
    local number=$1 key=${TABLE[$1,key]} name operator operators kinds=0
    for name in operator profiles scope reason source risk; do
        [[ -n ${TABLE[$number,$name]:-} ]] || fail "$SETTINGS: $key lacks the field \"$name\""
    done
    IFS=', ' read -ra operators <<<"${TABLE[$number,operator]}"
    for operator in "${operators[@]}"; do
        case $operator in
            at-least | at-most | exact | leave) ;;
            *) fail "$SETTINGS: $key: \"$operator\" is no operator; known are at-least, at-most, exact and leave" ;;
        esac
    done
    case ${TABLE[$number,scope]} in
        host | namespace | device | unit) ;;
        *) fail "$SETTINGS: $key: \"${TABLE[$number,scope]}\" is no scope; known are host, namespace, device and unit" ;;
    esac
    for name in value words computed; do
        [[ -z ${TABLE[$number,$name]:-} ]] || kinds=$((kinds + 1))
    done
    if [[ $operator == leave ]]; then
        ((kinds == 0)) || fail "$SETTINGS: $key: what is left alone has no value"
        return
    fi
    ((kinds == 1)) || fail "$SETTINGS: $key needs one of the fields value, words and computed"
    [[ -z ${TABLE[$number,words]:-} || $operator == exact ]] || fail "$SETTINGS: $key: words go with the operator exact"
    for name in value least most when; do
        refuse_nonsense "$key" "${TABLE[$number,$name]:-0}"
    done
    refuse_harmful "$number"
}

# refuse_nonsense KEY EXPRESSION: only numbers, the host's facts and arithmetic may get through to the shell.
refuse_nonsense() {
    local word
    [[ $2 =~ ^[a-z0-9_,\ ()+*/-]+$ ]] || fail "$SETTINGS: $1: \"$2\" is no formula"
    for word in ${2//[^a-z0-9_]/ }; do
        case $word in
            connections | ram_mib | cpus | softnet_drops | nics_short_of_queues) ;;
            *[!0-9]*) fail "$SETTINGS: $1: a formula knows no \"$word\"" ;;
        esac
    done
}

# refuse_harmful NUMBER: ends the program when the setting would set a value that does harm.
refuse_harmful() {
    local at word key=${TABLE[$1,key]}
    for ((at = 1; at <= HARMFUL_COUNT; at++)); do
        [[ ${HARMFUL[$at,key]} == "$key" ]] || continue
        for word in ${TABLE[$1,words]:-} ${TABLE[$1,value]:-}; do
            if [[ ${HARMFUL[$at,harmful]} == literal ]] || is_harmful "$at" "${word%,}"; then
                fail "$SETTINGS: $key = $word is refused: it does harm. ${HARMFUL[$at,reason]} (${HARMFUL[$at,source]})"
            fi
        done
    done
}

# is_harmful NUMBER VALUE: whether this value of that harmful setting does harm.
is_harmful() {
    local rule=${HARMFUL[$1,harmful]} low pressure high quarter
    case $rule in
        literal)
            read -r low pressure high <<<"$2"
            [[ $low =~ ^[0-9]+$ && $pressure =~ ^[0-9]+$ && $high =~ ^[0-9]+$ ]] || return 1
            # tcp_init_mem: the kernel's own are three quarters, the whole, and three halves of one number, rounded.
            quarter=$((pressure / 4))
            ((low != quarter * 3 || high != low * 2))
            ;;
        'not '*) [[ $2 != "${rule#not }" ]] ;;
        *) [[ $2 == "$rule" ]] ;;
    esac
}

# formula EXPRESSION: its number. The facts are globals in capitals.
formula() {
    REPLY=$((${1^^}))
}

# wanted_number NUMBER EXPRESSION: the formula within the bounds of the setting.
wanted_number() {
    local number
    formula "$2"
    number=$REPLY
    formula "${TABLE[$1,most]:-$number}"
    ((number <= REPLY)) || number=$REPLY
    formula "${TABLE[$1,least]:-$number}"
    ((number >= REPLY)) || number=$REPLY
    REPLY=$number
}

# in_profiles NUMBER: whether a setting belongs to one of the chosen profiles.
in_profiles() {
    local profile
    for profile in ${TABLE[$1,profiles]}; do
        [[ ,$PROFILES, == *,$profile,* ]] && return 0
    done
    return 1
}
