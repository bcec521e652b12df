# shellcheck shell=bash
# Completion of rootlessnet for bash. The program itself says what fits, so this file need not
# change with it.
#
#   eval "$(rootlessnet completion bash)"       in ~/.bashrc

_rootlessnet() {
    local program=${COMP_WORDS[0]/#\~/$HOME} line=${COMP_LINE:0:COMP_POINT}
    local current prefix='' breaks='' char word rest i
    local -a words=() begins=()
    COMPREPLY=()
    type -P -- "$program" >/dev/null || program=rootlessnet

    # Bash takes = : @ for ends of words; what has no blank before it belongs to the word before.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ -z ${COMP_LINE-} ]]; then
            words+=("$word") begins+=("$i")
            continue
        fi
        rest=${line#"${line%%[![:space:]]*}"}
        [[ $line == *[![:space:]]* ]] || rest=
        # Of the last one only what is left of the cursor counts.
        ((i < COMP_CWORD)) || word=$rest
        if [[ ${#words[@]} -gt 0 && -n $line && $rest == "$line" ]]; then
            words[-1]+=$word
        elif [[ ${#words[@]} -gt 0 && -z $line && -z $word ]]; then
            :
        else
            words+=("$word") begins+=("$i")
        fi
        line=${rest#"$word"}
    done
    current=${words[-1]}

    # Of a word with one of these in it bash replaces only what comes after the last of them.
    for char in @ = :; do
        [[ ${COMP_WORDBREAKS-} != *"$char"* ]] || breaks+=$char
    done
    [[ -z $breaks ]] || prefix=${current%"${current##*["$breaks"]}"}

    while IFS=$'\t' read -r word rest; do
        case $word in
        :files)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "${current#"$prefix"}")
            return
            ;;
        :directories)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -d -- "${current#"$prefix"}")
            return
            ;;
        ":command "*)
            i=${begins[${word#:command } + 1]}
            if declare -F _command_offset >/dev/null; then
                _command_offset "$i"
            elif ((i == COMP_CWORD)); then
                mapfile -t COMPREPLY < <(compgen -c -- "$current" | sort -u)
            else
                compopt -o filenames 2>/dev/null
                mapfile -t COMPREPLY < <(compgen -f -- "${current#"$prefix"}")
            fi
            return
            ;;
        *=) compopt -o nospace 2>/dev/null ;;
        esac
        word=${word#"$prefix"}
        # A name may have characters that mean something to the shell.
        [[ $current == [\'\"]* ]] || printf -v word %q "$word"
        COMPREPLY+=("$word")
    done < <("$program" completion --words -- "${words[@]:1}" 2>/dev/null)
}

complete -F _rootlessnet rootlessnet
