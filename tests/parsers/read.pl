# Reads every .eml of a folder with Email::MIME; prints what it saw as JSON:
# { "<file>": { "Email::MIME": {...} } }
use strict;
use warnings;
use Email::Address::XS;
use Email::MIME;
use JSON::PP;

my ($folder) = @ARGV;
my %all;

sub mailboxes {
    my ($message, $name) = @_;
    my @found = map { [ $_->phrase // '', $_->address ] }
        map { $message->header_as_obj($_)->addresses } ($message->header_raw($name) ? $name : ());
    return \@found;
}

opendir my $listing, $folder or die "$folder: $!";
for my $file (sort grep { /\.eml$/ } readdir $listing) {
    open my $handle, '<:raw', "$folder/$file" or die "$file: $!";
    my $content = do { local $/; <$handle> };
    my $message = Email::MIME->new(\$content);
    my %parts;
    my @parts = $message->subparts;
    for my $part (@parts) {
        my ($type) = $part->content_type =~ m{^text/(\w+)};
        $parts{$type} = $part->body_str;
    }
    $all{$file} = {
        'Email::MIME' => {
            subject     => scalar $message->header_str('Subject'),
            from        => mailboxes($message, 'From'),
            'reply-to'  => mailboxes($message, 'Reply-To'),
            to          => mailboxes($message, 'To'),
            text        => $parts{plain},
            html        => $parts{html},
            attachments => @parts - 2,
        },
    };
}
print JSON::PP->new->ascii->canonical->encode(\%all);
